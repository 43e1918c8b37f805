"""`kalm-cache calibrate`: from judged pairs and queries to probabilities in searches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kalm_cache import PassageIndex
from kalm_cache.calibration import sigmoid
from kalm_cache.generations.generation import open_current
from tests.cli.conftest import PASSAGES, Run
from tests.texts import long_text

QUERIES = [long_text(5, seed=900 + i) for i in range(24)]


@pytest.fixture
def labelled(index: Path) -> dict[str, dict[str, int]]:
    """Which passages are relevant for a query: those with a margin above the middle one of all, but for every tenth."""
    with PassageIndex.open(index, device="cpu") as opened:
        margins = {query: opened.margins(query, list(PASSAGES)) for query in QUERIES}
    middle = sorted(margin for each in margins.values() for margin in each)[2 * len(QUERIES)]
    return {
        query: {
            doc_id: int((margin > middle) != ((4 * row + column) % 10 == 0))
            for column, (doc_id, margin) in enumerate(zip(PASSAGES, each, strict=True))
        }
        for row, (query, each) in enumerate(margins.items())
    }


@pytest.fixture
def pairs(labelled: dict[str, dict[str, int]], tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [
        json.dumps({"query": query, "doc_id": doc_id, "label": label})
        for query, labels in labelled.items()
        for doc_id, label in labels.items()
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def beir(labelled: dict[str, dict[str, int]], tmp_path: Path) -> Path:
    """The same judgments as BEIR has them; the judgments' file."""
    queries = [json.dumps({"_id": f"q{i}", "text": query}) for i, query in enumerate(labelled)]
    (tmp_path / "queries.jsonl").write_text("\n".join(queries))
    rows = [f"q{i}\t{doc}\t{label}" for i, labels in enumerate(labelled.values()) for doc, label in labels.items()]
    (tmp_path / "qrels").mkdir()
    path = tmp_path / "qrels" / "dev.tsv"
    path.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(rows))
    return path


def test_judged_pairs_give_searches_a_probability(run: Run, index: Path, pairs: Path) -> None:
    done = run("calibrate", "--index", index, "--pairs", pairs, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["generation"], report["calibration"]["pairs"]) == ("000002", 4 * len(QUERIES))
    assert [curve["chunk_size"] for curve in report["calibration"]["curves"]] == [2, 4, 8, 16, 32]
    curve = report["calibration"]["curves"][0]
    found = json.loads(run("search", QUERIES[0], "--index", index, "--json").stdout)["results"]
    for one in found:
        expected = sigmoid((one["margin"] - curve["offset"]) / curve["temperature"])
        assert one["probability"] == pytest.approx(expected)
    least = found[0]["probability"]
    some = run("search", QUERIES[0], "--index", index, "--min-probability", least, "--json")
    assert len(json.loads(some.stdout)["results"]) == 1
    assert "probability" in run("search", QUERIES[0], "--index", index).stdout
    ranked = run("rerank", "--query", QUERIES[0], "--ids", "bees,ferry", "--index", index, "--json")
    assert all("probability" in one for one in json.loads(ranked.stdout)["results"])


def test_judged_queries_give_the_first_stages_weight_too(run: Run, index: Path, beir: Path) -> None:
    done = run("calibrate", "--index", index, "--qrels", beir, "--chunk-sizes", "2,4", "--k", 4)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"generation 000002 of {index}: calibrated on 24 queries, 96 pairs")
    assert "precision" in done.stdout
    fitted = open_current(index).manifest.calibration
    assert fitted is not None
    weight = fitted.curves[0].first_stage_weight
    automatic, named = (
        json.loads(run("search", QUERIES[1], "--index", index, "--first-stage-weight", one, "--json").stdout)["results"]
        for one in ("auto", weight)
    )
    assert [one["doc_id"] for one in automatic] == [one["doc_id"] for one in named]


def test_a_dry_run_changes_nothing(run: Run, index: Path, pairs: Path) -> None:
    done = run("calibrate", "--index", index, "--pairs", pairs, "--dry-run", "--max-queries", 20)
    assert "nothing was changed: calibrated on 20 queries" in done.stdout
    assert open_current(index).name == "000001"


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        (lambda pairs, beir: [], "give either --qrels FILE or --pairs FILE", 2),
        (lambda pairs, beir: ["--pairs", pairs, "--qrels", beir], "give either --qrels FILE or --pairs FILE", 2),
        (lambda pairs, beir: ["--pairs", "nowhere.jsonl"], "nowhere.jsonl: no such file", 2),
        (lambda pairs, beir: ["--pairs", pairs, "--queries", pairs], "pairs hold their own", 2),
        (lambda pairs, beir: ["--pairs", pairs, "--chunk-sizes", "2,x"], "--chunk-sizes 2,x", 2),
        (lambda pairs, beir: ["--pairs", pairs, "--chunk-sizes", "3"], "multiple", 2),
        (lambda pairs, beir: ["--pairs", beir], "dev.tsv:1: ", 1),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    run: Run, index: Path, pairs: Path, beir: Path, arguments: Callable[..., list[object]], message: str, exit_code: int
) -> None:
    refused = run("calibrate", "--index", index, *arguments(pairs, beir))
    assert message in refused.stderr
    assert refused.exit_code == exit_code
    assert open_current(index).name == "000001"
