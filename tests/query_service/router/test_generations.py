"""While a generation spreads, a router's answers are of one that all shards have, and no request fails."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from indexer.build.index_job import Encoders, load_encoders
from indexer.change.reindex import run_reindex
from kalm_cache.settings import Settings
from tests import indexes
from tests.indexer.changes import add
from tests.query_service.conftest import CORPUS, serving
from tests.query_service.router.conftest import SHARDS, routing
from tests.waiting import wait_for

ADMIN = {"Authorization": "Bearer root"}
ASKED = {"query": "bees", "ids": ["s0", "s1", "l0", "l1", "l2"]}


@pytest.fixture(scope="module")
def encoders(settings: Settings) -> Encoders:
    return load_encoders(settings)


@pytest.fixture
def folder(settings: Settings, encoders: Encoders, tmp_path: Path) -> Path:
    indexes.build(tmp_path / "index", settings, CORPUS, shards=SHARDS, encoders=encoders)
    return tmp_path / "index"


@pytest.fixture
def parts(folder: Path) -> Iterator[list[httpx.Client]]:
    """Two services that change when they are told to."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(folder, shards=shards, watch_seconds=0.0, admin_keys="root"))
            for shards in ("0,1", "2,3")
        ]


@pytest.fixture
def router(parts: list[httpx.Client], tmp_path: Path) -> Iterator[httpx.Client]:
    with routing([str(part.base_url) for part in parts], tmp_path, watch_seconds=3600.0) as client:
        yield client


def reload(part: httpx.Client) -> None:
    assert part.post("/admin/reload", headers=ADMIN).status_code == 200


def version(client: httpx.Client) -> str:
    response = client.post("/rerank", json=ASKED)
    assert response.status_code == 200, response.text
    assert response.json()["meta"]["index_version"] == response.headers["X-Index-Version"]
    return response.headers["X-Index-Version"]


def test_the_generation_before_answers_until_all_shards_have_the_new_one(
    router: httpx.Client, parts: list[httpx.Client], folder: Path, settings: Settings, encoders: Encoders
) -> None:
    add(folder, settings, encoders, {"new": "a new passage"})
    reload(parts[0])
    assert version(router) == "000001"
    reload(parts[1])
    assert version(router) == "000001"  # the router has not looked, and both still have it
    add(folder, settings, encoders, {"newer": "another one"})
    for part in parts:
        reload(part)  # 000001 is closed: the router looks, and begins again
    assert version(router) == "000003"
    found = router.post("/rerank", json=ASKED | {"ids": ["new", "newer", "s0"]})
    assert found.status_code == 200


def test_a_request_waits_while_no_generation_is_everywhere(
    router: httpx.Client, parts: list[httpx.Client], folder: Path, settings: Settings, encoders: Encoders
) -> None:
    for doc_id in ("new", "newer"):
        add(folder, settings, encoders, {doc_id: f"{doc_id} passage"})
        reload(parts[0])  # two ahead: the other service has 000001 alone
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(version, router)
        wait_for(lambda: router.get("/health").json()["missing_shards"] == [2, 3])
        assert not waiting.done()
        reload(parts[1])
        assert waiting.result() == "000003"


def test_another_number_of_shards_is_not_followed(
    router: httpx.Client, parts: list[httpx.Client], folder: Path, settings: Settings, encoders: Encoders
) -> None:
    silent = {"on_reject": lambda line: None, "on_progress": lambda progress: None}
    run_reindex(indexes.lines_of(CORPUS), folder, settings, encoders, shards=2, **silent)  # type: ignore[arg-type]
    refused = parts[0].post("/admin/reload", headers=ADMIN)
    assert (refused.status_code, "has 2 shards, the generation before had 4" in refused.text) == (409, True)
    assert parts[0].get("/ready").json()["status"] == "stale"
    assert version(router) == "000001"


def test_services_of_another_index_are_not_mixed_in(
    parts: list[httpx.Client], settings: Settings, encoders: Encoders, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    indexes.build(other, settings, dict(list(CORPUS.items())[:9]), shards=SHARDS, encoders=encoders)
    with serving(other, shards="2,3") as foreign:
        addresses = [str(parts[0].base_url), str(foreign.base_url)]
        with routing(addresses, tmp_path, timeout_ms=400) as client:
            assert client.post("/rerank", json=ASKED).status_code in (503, 504)
