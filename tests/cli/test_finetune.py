"""`kalm-cache finetune` and `mine` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.finetuning.results.comparison import Comparison, Point
from tests.cli.conftest import PASSAGES, Run

FEW = ("--epochs", "1", "--candidates", "4", "--negatives", "2", "--range", "1-4", "--watch-share", "0.2")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    ids = list(PASSAGES)
    records = [{"query": f"{PASSAGES[ids[n % 4]].split()[-1]} {n}", "pos": [ids[n % 4]]} for n in range(16)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"query": "x", "pos": ["nobody"]}\n')
    return path


def test_mine_writes_what_finetune_reads_and_bad_lines_go_to_the_errors_file(
    run: Run, built: Path, train: Path, tmp_path: Path
) -> None:
    out, errors = tmp_path / "mined.jsonl", tmp_path / "errors.jsonl"
    done = run(
        "mine", "--index", built, "--train", train, "--out", out, "--errors", errors, "--negatives", 2, "--random", 1,
        "--range", "1-4", "--false-above", "inf", "--json",
    )  # fmt: skip
    assert (done.exit_code, json.loads(done.stdout)["queries"]) == (3, 16)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {len(record["neg"]) >= 2 for record in records} == {True}
    assert all(passage["doc_id"] in PASSAGES for record in records for passage in record["neg"])
    assert "train.jsonl:17" in errors.read_text()


@pytest.mark.parametrize(("after", "force", "exit_code"), [(0.4, (), 1), (0.4, ("--force",), 3), (0.6, (), 3)])
def test_a_worse_ranking_ends_in_exit_code_1_unless_forced(
    run: Run, built: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float,
    force: tuple[str, ...], exit_code: int,
) -> None:  # fmt: skip
    points = [Point(2, 0.5, after, -0.2, 0.2, 0.3, 1, 2, None, (1.0, 1.0))]
    monkeypatch.setattr("kalm_cache.finetuning.job._compare", lambda *arguments: Comparison(4, 4, points))
    out = tmp_path / "tuned"
    done = run("finetune", "--index", built, "--train", train, "--out", out, *FEW, *force)
    assert done.exit_code == exit_code, done.output
    assert ("this is WORSE than before" in done.stdout) == (after < 0.5)
    assert (out / "config.json").is_file()


def test_what_cannot_be_is_refused_before_anything_runs(run: Run, built: Path, train: Path, tmp_path: Path) -> None:
    start = ("finetune", "--index", built, "--train", train, "--out", tmp_path / "tuned")
    for flags, message in (
        (("--loss", "hinge"), "loss 'hinge' is not known"),
        (("--range", "5"), "expected FIRST-LAST"),
        (("--chunk-sizes", "3"), "states are stored at 2"),
        (("--items", "words"), "expected auto, ids, texts"),
        (("--watch-share", "1"), "held-out shares"),
    ):
        done = run(*start, *flags)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "tuned").exists()
