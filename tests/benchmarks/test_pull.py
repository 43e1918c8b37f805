from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("obstore")

from benchmarks import pull
from tests.benchmarks.conftest import Run


def test_a_pull_after_an_incremental_reindex_moves_what_changed(run_benchmark: Run, tmp_path: Path) -> None:
    rows, table = run_benchmark(pull.main, "--passages", "1000", "--changed", "0.01", "--folder", tmp_path)
    first, incremental, whole = rows
    assert first["moved_bytes"] == first["bytes"]
    assert incremental["moved_bytes"] < incremental["bytes"] / 10  # few passages: what a segment takes at least counts
    assert whole["moved_bytes"] > whole["bytes"] / 2
    assert table.count("kalm-cache") == 3


def test_the_changed_corpus_differs_in_as_many_passages_as_asked_for() -> None:
    before = {line.passage.doc_id: line.passage.text for line in pull.lines(1000)}
    after = {line.passage.doc_id: line.passage.text for line in pull.lines(1000, 40)}
    same = [name for name, text in before.items() if after.get(name) == text]
    assert (len(before), len(after), len(same)) == (1000, 1000, 970)
    assert (len(after.keys() - before.keys()), len(before.keys() - after.keys())) == (10, 10)
