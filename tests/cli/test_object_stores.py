"""`--index URL`: every command on an index in an object store, from the first build to gc."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore")

from kalm_cache.object_store.location import parse_location
from kalm_cache.object_store.store import open_store
from tests.cli.conftest import PASSAGES, Run
from tests.object_store.places import BUCKET, CREDENTIALS


@pytest.fixture
def url(s3: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where there is no index yet; what commands pull goes into a cache of the test's own."""
    monkeypatch.setenv("KALM_CACHE_CACHE_FOLDER", str(tmp_path / "cache"))
    host, port = s3
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true"}).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def ask(run: Run) -> Any:
    """Runs a command with --json; what it says."""

    def invoke(*arguments: object, exit_code: int = 0) -> Any:
        done = run(*arguments, "--json")
        assert done.exit_code == exit_code, done.output
        return json.loads(done.stdout)

    return invoke


def jsonl(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()), "utf-8")
    return path


def test_an_index_lives_its_whole_life_in_an_object_store(ask: Any, url: str, corpus: Path, tmp_path: Path) -> None:
    built = ask("index", corpus, "--index", url)
    assert (built["index"], built["generation"], built["passages"]) == (url, "000001", 4)
    more = jsonl(tmp_path / "more.jsonl", {"owls": "Owls hunt at night."})
    assert ask("add", more, "--index", url)["generation"] == "000002"
    assert "owls" in [one["doc_id"] for one in ask("search", "owls", "--index", url)["results"]]
    (ranked,) = ask("rerank", "--query", "owls", "--id", "owls", "--index", url)["results"]
    assert ranked["doc_id"] == "owls"
    assert ask("delete", "owls", "--index", url)["passages"] == 4
    assert ask("verify", "--index", url)["ok"]
    stats = ask("stats", "--index", url)
    assert (stats["generation"], stats["passages"], stats["segments"], stats["tombstones"]) == ("000003", 4, 2, 1)
    back = ask("rollback", "--index", url)
    assert (back["index"], back["before"], back["generation"], back["passages"]) == (url, "000003", "000002", 5)
    ask("rollback", "--to", "3", "--index", url)
    assert ask("gc", "--dry-run", "--index", url)["compacted"] == 1
    collected = ask("gc", "--keep", "0", "--index", url)
    assert (collected["index"], collected["generation"], collected["compacted"]) == (url, "000004", 1)
    assert [one["generation"] for one in collected["removed"]] == ["000001", "000002", "000003"]
    assert collected["freed_bytes"] > 0
    reindexed = ask("reindex", jsonl(tmp_path / "new.jsonl", PASSAGES | {"bats": "Bats fly."}), "--index", url)
    assert (reindexed["generation"], reindexed["reused"], reindexed["encoded"]) == ("000005", 4, 1)
    assert ask("fold", "--index", url)["segments"] == 1
    ids = {one["doc_id"] for one in ask("search", "bats", "--index", url)["results"]}
    assert ids == {*PASSAGES, "bats"}


def test_a_corpus_in_a_bucket_is_indexed_added_reindexed_warmed_and_planned(ask: Any, url: str, tmp_path: Path) -> None:
    lines = [json.dumps({"_id": key, "text": text}) for key, text in PASSAGES.items()]
    for name, content in (
        ("corpus/a.jsonl.gz", gzip.compress("\n".join(lines[:2]).encode())),
        ("corpus/b.jsonl", "\n".join(lines[2:]).encode() + b'\n{"_id": 7}\n'),
        ("more.tsv", b"owls\tOwls hunt at night.\n"),
    ):
        open_store(parse_location(url)).put(name, content)
    corpus, more, index = f"{url}/corpus/", f"{url}/more.tsv", f"{url}/index"
    errors = tmp_path / "errors.jsonl"
    built = ask("index", corpus, "--index", index, "--errors", errors, exit_code=3)
    assert (built["index"], built["passages"], built["rejected"]) == (index, len(PASSAGES), 1)
    assert json.loads(errors.read_text())["location"] == f"{url}/corpus/b.jsonl:{len(PASSAGES) - 1}"
    assert ask("add", more, "--index", index)["passages"] == len(PASSAGES) + 1
    reindexed = ask("reindex", corpus, "--index", index, exit_code=3)
    assert (reindexed["passages"], reindexed["encoded"]) == (len(PASSAGES), 0)
    warmed = ask("warm", more, "--text-cache", tmp_path / "texts")
    assert (warmed["passages"], warmed["encoded"]) == (1, 1)
    planned = ask("partition", "plan", corpus, "--index", tmp_path / "planned", "--shards", "2", exit_code=3)
    assert (planned["passages"], len(planned["partitions"]), planned["rejected"]) == (len(PASSAGES), 2, 1)


def test_a_folder_is_pushed_pulled_changed_and_pushed_again(
    ask: Any, run: Run, url: str, index: Path, tmp_path: Path
) -> None:
    pushed = ask("push", index, url)
    assert (pushed["url"], pushed["generation"], pushed["passages"]) == (url, "000001", 4)
    there = tmp_path / "there"
    assert ask("pull", url, there)["moved_bytes"] == pushed["bytes"]
    ask("delete", "bees", "--index", there)
    ask("delete", "ferry", "--index", index)
    assert ask("push", there, url)["generation"] == "000002"
    lost = run("push", index, url)
    assert lost.exit_code == 1
    assert "another writer made generation 000002 live meanwhile" in lost.stderr
    assert ask("stats", "--index", url)["passages"] == 3
    assert run("pull", url, index).exit_code == 1  # it has a change of its own


def test_verify_says_what_the_store_lacks(ask: Any, url: str, index: Path) -> None:
    ask("push", index, url)
    assert ask("verify", "--index", url)["ok"]
    store = open_store(parse_location(url))
    largest = max(store.list("files").items(), key=lambda item: item[1].bytes)[0]
    store.delete([largest])
    report = ask("verify", "--index", url, exit_code=1)
    (damage,) = report["damaged"]
    assert f"is missing in {url}" in damage["problem"]


def test_secrets_are_in_no_output(run: Run, url: str, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    refused = run("search", "x", "--index", "s3://AKIA:a-very-secret-key@bucket/path")
    assert refused.exit_code == 2
    missing = run("search", "x", "--index", url)
    assert missing.exit_code == 1
    assert f"{url}: no published index here" in missing.stderr
    assert "a-very-secret-key" not in refused.output + missing.output


def test_an_interrupted_build_goes_on(
    ask: Any, run: Run, url: str, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexer.build import build as building

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "seal", stop)
        assert run("index", corpus, "--index", url).exit_code == 130
    assert run("stats", "--index", url).exit_code == 1
    done = ask("index", corpus, "--index", url)
    assert (done["passages"], done["encoded"], done["resumed"]) == (4, 0, 4)
