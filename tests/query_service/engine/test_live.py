"""Generations swapped under a running service, published by the real indexer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest

from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.change.set_decoder import set_decoder
from kalm_cache.errors import KalmCacheError, UnknownIdError
from kalm_cache.generations.current import write_current
from kalm_cache.generations.generation import open_current
from kalm_cache.index.from_settings import open_index
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.digests import decoder_digest
from kalm_cache.settings import Settings, load_settings
from query_service.engine.live import LiveIndex
from tests.checkpoints import with_other_decoder
from tests.query_service.conftest import serving
from tests.waiting import wait_for

Q = {"query": "bees", "ids": ["s2", "s3"]}


@pytest.fixture
def folder(index_folder: Path, tmp_path: Path) -> Path:
    """An index that the test may change: generation 000001."""
    shutil.copytree(index_folder, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def settings() -> Settings:
    return load_settings(device="cpu", dtype="float32")


@pytest.fixture
def live(folder: Path, settings: Settings) -> Iterator[LiveIndex]:
    opened = LiveIndex(folder, lambda before: open_index(folder, settings, before), with_encoder=True)
    yield opened
    opened.close()


def test_a_lease_keeps_its_generation_open_until_it_ends(live: LiveIndex, folder: Path) -> None:
    with live.lease() as old:
        delete_passages(["s1"], folder)
        assert live.reload()
        assert live.served.version == "000002"
        assert old.version == "000001"
        assert len(old.index.margins("bees", ["s1"])) == 1  # still there, for whoever began with it
        with live.lease() as new, pytest.raises(UnknownIdError):
            new.index.margins("bees", ["s1"])
        assert collect_garbage(folder, 0).removed == []  # its reader holds it
    assert [one.generation for one in collect_garbage(folder, 0).removed] == ["000001"]


def test_nothing_new_is_no_swap(live: LiveIndex) -> None:
    before = live.served
    assert not live.reload()
    assert live.served is before


def test_generations_of_one_model_share_its_weights_and_the_embedder(live: LiveIndex, folder: Path) -> None:
    before = live.served
    assert before.documents is not None
    before.documents.load()
    delete_passages(["s1"], folder)
    live.reload()
    assert live.served.index.query_side is before.index.query_side
    assert live.served.index.embedder is before.index.embedder
    assert live.served.documents is not before.documents
    assert live.served.documents is not None
    assert live.served.documents.loaded


def test_a_generation_that_cannot_be_opened_leaves_the_old_one_in_service(live: LiveIndex, folder: Path) -> None:
    delete_passages(["s1"], folder)
    manifest = folder / "generations" / "000002" / "manifest.json"
    sound = manifest.read_bytes()
    manifest.write_bytes(sound.replace(b'"passages"', b'"passagez"'))
    with pytest.raises(KalmCacheError, match="checksum"):
        live.reload()
    assert live.served.version == "000001"
    assert len(live.served.index.margins("bees", ["s1"])) == 1
    assert live.behind is not None
    assert live.behind.generation == "000002"
    assert "manifest.json" in live.behind.reason
    manifest.write_bytes(sound)
    assert live.reload()
    assert (live.served.version, live.behind) == ("000002", None)


def test_a_service_picks_up_what_is_published_and_says_which_generation_answered(folder: Path) -> None:
    with serving(folder, watch_seconds=0.02) as client:
        assert client.post("/rerank", json=Q).headers["x-index-version"] == "000001"
        delete_passages(["s2"], folder)
        wait_for(lambda: client.get("/health").json()["index_version"] == "000002")
        gone = client.post("/rerank", json=Q)
        assert (gone.status_code, gone.json()["error"]["ids"]) == (404, ["s2"])
        roll_back(folder, "000001")
        wait_for(lambda: client.get("/ready").json()["index_version"] == "000001")
        answer = client.post("/rerank", json=Q)
        assert answer.headers["x-index-version"] == answer.json()["meta"]["index_version"] == "000001"
        assert 'kalm_cache_swaps_total{outcome="ok"} 2.0' in client.get("/metrics").text


def test_health_says_why_the_newest_generation_is_not_served(folder: Path) -> None:
    with serving(folder, admin_keys="root", watch_seconds=0) as client:
        delete_passages(["s2"], folder)
        (folder / "generations" / "000002" / "manifest.json").write_bytes(b"{}")
        refused = client.post("/admin/reload", headers={"Authorization": "Bearer root"})
        assert refused.status_code >= 400
        assert client.get("/health").json()["reload_failure"] == refused.json()["detail"]
        assert client.post("/rerank", json=Q).status_code == 200
        assert 'kalm_cache_swaps_total{outcome="failed"} 1.0' in client.get("/metrics").text


def test_a_service_that_is_behind_says_so_and_goes_on_answering(folder: Path) -> None:
    with serving(folder, watch_seconds=0.02) as client:
        assert client.get("/ready").json() == {"status": "ready", "index_version": "000001"}
        assert "kalm_cache_generation_behind_seconds 0.0" in client.get("/metrics").text
        delete_passages(["s2"], folder)
        wait_for(lambda: client.get("/ready").json()["index_version"] == "000002")
        manifest = folder / "generations" / "000001" / "manifest.json"
        sound = manifest.read_bytes()
        manifest.write_bytes(b"{}")
        write_current(folder, "000001")
        wait_for(lambda: client.get("/ready").json()["status"] == "stale")
        stale = client.get("/ready")
        assert (stale.status_code, stale.json()["index_version"]) == (200, "000002")
        assert stale.json()["behind"]["index_version"] == "000001"
        assert "manifest.json" in stale.json()["behind"]["reason"]
        assert client.get("/health").json()["behind"]["index_version"] == "000001"
        first = _behind_seconds(client)
        wait_for(lambda: _behind_seconds(client) > first > 0)  # since it was first seen, not since the last look
        assert client.post("/rerank", json={"query": "bees", "ids": ["s3"]}).status_code == 200
        manifest.write_bytes(sound)
        wait_for(lambda: client.get("/ready").json() == {"status": "ready", "index_version": "000001"})
        assert _behind_seconds(client) == 0.0


def test_going_back_to_what_is_served_ends_being_behind(live: LiveIndex, folder: Path) -> None:
    delete_passages(["s1"], folder)
    (folder / "generations" / "000002" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(KalmCacheError):
        live.reload()
    write_current(folder, "000001")
    assert not live.reload()
    assert live.behind is None


def _behind_seconds(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("kalm_cache_generation_behind_seconds ")))


def test_an_administrator_swaps_at_once_and_nobody_else(folder: Path) -> None:
    keys = {"api_keys": "user", "admin_keys": "root", "watch_seconds": 0}
    with serving(folder, **keys) as client:
        delete_passages(["s1"], folder)
        time.sleep(0.1)
        assert client.get("/health").json()["index_version"] == "000001"  # nobody watches
        assert client.post("/admin/reload").status_code == 401
        assert client.post("/admin/reload", headers={"Authorization": "Bearer user"}).status_code == 403
        swapped = client.post("/admin/reload", headers={"Authorization": "Bearer root"}).json()
        assert swapped == {"index_version": "000002", "swapped": True}


def test_no_request_fails_or_is_mixed_up_while_generations_are_swapped(folder: Path, settings: Settings) -> None:
    """A short form of the torture: two generations, four clients, 20 swaps."""
    delete_passages(["s1"], folder)
    expected = {}
    for name in ("000001", "000002"):
        roll_back(folder, name)
        with open_index(folder, settings) as index:
            expected[name] = {one.doc_id: one.margin for one in index.search("bees dance", k=18, top_n=None).results}
    assert expected["000001"].keys() - expected["000002"].keys() == {"s1"}
    wrong: list[str] = []
    counts = dict.fromkeys(expected, 0)
    stop = False

    def ask(client: httpx.Client) -> None:
        while not stop:
            response = client.post("/search", json={"query": "bees dance", "k": 18, "top_n": 0})
            if response.status_code != 200:
                wrong.append(response.text)
                continue
            version = response.headers["x-index-version"]
            got = {one["doc_id"]: one["margin"] for one in response.json()["results"]}
            counts[version] += 1
            if got != pytest.approx(expected[version], abs=1e-5):
                wrong.append(f"{version}: {got}")

    with serving(folder, watch_seconds=0.01) as client:
        threads = [Thread(target=ask, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(20):
            name = ("000001", "000002")[number % 2]
            roll_back(folder, name)
            wait_for(lambda name=name: client.get("/health").json()["index_version"] == name)
        stop = True
        for thread in threads:
            thread.join()
    assert wrong == []
    assert all(count > 0 for count in counts.values())


def test_another_decoder_is_taken_over_and_named(folder: Path, mini_folder: Path, tmp_path: Path) -> None:
    tuned = with_other_decoder(mini_folder, tmp_path / "tuned")
    with serving(folder, watch_seconds=0.01) as client:
        before, named = client.post("/rerank", json=Q).json(), client.get("/info").json()
        set_decoder(folder, str(tuned))
        wait_for(lambda: client.get("/health").json()["index_version"] == "000002")
        after, info = client.post("/rerank", json=Q).json(), client.get("/info").json()
        assert [one["score"] for one in after["results"]] != [one["score"] for one in before["results"]]
        assert (named["decoder"], info["decoder"]) == (mini_folder.name, "tuned")
        assert info["model_sha"] == named["model_sha"] == open_current(folder).manifest.fingerprint.model
        assert info["decoder_sha"] == decoder_digest(open_checkpoint(str(tuned))) != named["decoder_sha"]
        assert info["model_id"] == named["model_id"]  # what clients send as `model` stays
        metrics = client.get("/metrics").text
        assert f'kalm_cache_decoder{{digest="{info["decoder_sha"]}"}} 1.0' in metrics
        assert f'kalm_cache_decoder{{digest="{named["decoder_sha"]}"}} 0.0' in metrics
        roll_back(folder)
        wait_for(lambda: client.get("/info").json()["decoder_sha"] == named["decoder_sha"])
        assert client.post("/rerank", json=Q).json()["results"] == before["results"]
