"""`kalm-cache partition plan`, `build`, `commit` and `drop`, and `--shards`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import PASSAGES, Run
from tests.cli.test_index import BAD_CORPUS


def test_a_corpus_is_planned_built_and_committed_and_then_searched(run: Run, corpus: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    planned = json.loads(run("partition", "plan", corpus, "--index", index, "--shards", 3, "--json").stdout)
    assert (planned["passages"], len(planned["partitions"])) == (len(PASSAGES), 3)
    for partition in range(3):
        receipt = json.loads(run("partition", "build", "--index", index, "--partition", partition, "--json").stdout)
        assert (receipt["partition"], receipt["plan"]) == (partition, planned["plan"])
        assert receipt["counts"]["passages"] == planned["partitions"][partition]
    result = run("partition", "commit", "--index", index)
    assert result.stdout.startswith(f"generation 000001 of {index}: 4 passages")
    answer = json.loads(run("search", "capital of China", "--index", index, "--json").stdout)
    assert {one["doc_id"] for one in answer["results"]} == set(PASSAGES)
    assert json.loads(run("verify", "--index", index, "--json").stdout)["ok"]


def test_a_plan_of_a_corpus_with_bad_lines_reports_them_as_indexing_does(run: Run, tmp_path: Path) -> None:
    corpus = tmp_path / "bad.jsonl"
    corpus.write_bytes(BAD_CORPUS)
    files = [tmp_path / name for name in ("by plan.jsonl", "by index.jsonl")]
    plan = run("partition", "plan", corpus, "--index", tmp_path / "a", "--shards", 2, "--errors", files[0])
    index = run("index", corpus, "--index", tmp_path / "b", "--errors", files[1])
    assert (plan.exit_code, index.exit_code) == (3, 3)
    assert files[0].read_text("utf-8") == files[1].read_text("utf-8")


def test_a_commit_too_early_says_what_is_not_built(run: Run, corpus: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    run("partition", "plan", corpus, "--index", index, "--shards", 2)
    run("partition", "build", "--index", index, "--partition", 0)
    result = run("partition", "commit", "--index", index)
    assert result.exit_code == 1
    assert "1 of 2 partitions are not built: 1;" in result.stderr
    assert run("partition", "build", "--index", index, "--partition", 7).exit_code == 2


def test_shards_are_made_by_indexing_and_kept_by_reindexing(run: Run, corpus: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert run("index", corpus, "--index", index, "--shards", 3).exit_code == 0
    stats = json.loads(run("stats", "--index", index, "--json").stdout)
    assert (stats["segments"], stats["passages"]) == (3, len(PASSAGES))
    report = json.loads(run("reindex", corpus, "--index", index, "--json").stdout)
    assert (report["reused"], report["encoded"]) == (len(PASSAGES), 0)
    assert json.loads(run("stats", "--index", index, "--json").stdout)["segments"] == 3
    run("reindex", corpus, "--index", index, "--shards", 2)
    assert json.loads(run("stats", "--index", index, "--json").stdout)["segments"] == 2
    assert run("index", corpus, "--index", index, "--shards", 0).exit_code == 2


def test_partitions_in_an_object_store_need_no_folder(
    run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = f"file://{tmp_path}/bucket"
    monkeypatch.setenv("KALM_CACHE_CACHE_FOLDER", str(tmp_path / "cache"))

    def ask(*arguments: object) -> Any:
        done = run("partition", *arguments, "--index", index, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    assert ask("plan", corpus, "--shards", 2)["passages"] == len(PASSAGES)
    assert ask("drop")["built"] == 0
    ask("plan", corpus, "--shards", 2)
    receipts = [ask("build", "--partition", partition) for partition in (0, 1)]
    assert sum(receipt["encoded"] for receipt in receipts) == len(PASSAGES)
    report = ask("commit")
    assert (report["index"], report["passages"]) == (index, len(PASSAGES))


def test_an_incremental_reindex_cannot_change_the_number_of_shards(run: Run, corpus: Path, tmp_path: Path) -> None:
    refused = run("reindex", corpus, "--index", tmp_path / "index", "--incremental", "--shards", 2)
    assert (refused.exit_code, refused.stderr.strip()) == (
        2,
        "error: --shards writes the base anew: leave --incremental out",
    )
