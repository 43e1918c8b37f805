from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.candidates import Questions
from benchmarks.storage import __main__ as storage
from benchmarks.storage.report import groups_of, markdown_report
from kalm_cache.codec import get_codec
from kalm_cache.evaluation import BeirTask
from kalm_cache.scoring.pooling import PooledPassage
from tests.benchmarks.conftest import Run
from tests.texts import TRAINING_SENTENCES

pytest.importorskip("matplotlib")
PNG = b"\x89PNG"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Six passages, and two queries that are the beginnings of two of them."""
    folder = tmp_path / "toy"
    (folder / "qrels").mkdir(parents=True)
    texts = TRAINING_SENTENCES[:6]
    corpus = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
    queries = [{"_id": f"q{i}", "text": texts[i][:30]} for i in (1, 4)]
    for name, lines in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq4\td4\t1\n")
    return folder


@pytest.fixture
def row() -> dict[str, Any]:
    """A row as `measure` and `run` make it."""
    return {
        "collection": "toy", "split": "test", "model": "mini", "checkpoint": "abc", "queries": 9, "k": 50,
        "pairs_only": False, "r": 4, "codec": "int4", "width": 256, "passages": 7, "tokens_per_passage": 150.0,
        "payload_bytes_per_passage": 5000.0, "payload_bytes_per_token": 33.3, "file_bytes_per_passage": 5100.0,
        "file_bytes_per_token": 34.0, "payload_bytes_of_128_tokens": 4290, "encode_mb_s": 50.0, "decode_mb_s": 1234.5,
        "relative_error": 0.08, "drift_mean": 0.04, "drift_max": 0.2, "kendall": 0.9712, "top10": 0.95,
        "ndcg@10": 0.8, "recall@10": 0.9, "ndcg_change": -0.0012, "ndcg_change_se": 0.0003,
    }  # fmt: skip


def test_each_configuration_is_a_row_and_fp32_is_its_own_reference(
    mini_folder: Path, toy: Path, tmp_path: Path, run_benchmark: Run
) -> None:
    out = tmp_path / "out"
    rows, report = run_benchmark(
        storage.main, "--beir", toy, "--out", out, "--model", mini_folder, "--label", "a model", "--k", 4,
        "--codecs", "fp32,int2", "--chunk-sizes", "1,4",
    )  # fmt: skip
    assert [(row["r"], row["codec"]) for row in rows] == [(1, "fp32"), (1, "int2"), (4, "fp32"), (4, "int2")]
    assert rows == storage.read_rows(out / "storage.jsonl")
    for exact, coarse in (rows[:2], rows[2:]):
        assert (exact["drift_max"], exact["kendall"], exact["ndcg_change"], exact["relative_error"]) == (0, 1, 0, 0)
        assert coarse["drift_max"] > 0
        assert coarse["kendall"] < 1
        assert 0.1 < coarse["relative_error"] < 1
        assert coarse["payload_bytes_per_passage"] < exact["payload_bytes_per_passage"] / 4
        assert all(row["file_bytes_per_passage"] > row["payload_bytes_per_passage"] for row in (exact, coarse))
        assert all(row["encode_mb_s"] > 0 and row["decode_mb_s"] > 0 for row in (exact, coarse))
    assert rows[0]["width"] == 64
    assert rows[0]["payload_bytes_per_token"] == 4 * 64
    assert rows[2]["payload_bytes_of_128_tokens"] == 4 * 64 * 128 / 4
    assert rows[0]["recall@10"] == 1.0  # both relevant passages are among the four candidates
    assert "a model on toy test: 2 queries × 4 candidates" in report
    assert (out / "storage.md").read_text("utf-8").strip() == report.strip()
    assert (out / "storage.png").read_bytes().startswith(PNG)
    assert str(mini_folder) not in (out / "storage.jsonl").read_text("utf-8")


def test_a_second_run_measures_only_what_is_missing(
    mini_folder: Path, toy: Path, tmp_path: Path, run_benchmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ("--beir", toy, "--out", tmp_path / "out", "--model", mini_folder, "--k", 3, "--chunk-sizes", "2")
    first, _ = run_benchmark(storage.main, *case, "--codecs", "fp32,int4")
    more, _ = run_benchmark(storage.main, *case, "--codecs", "fp32,int4,int8")
    assert [row["codec"] for row in more] == ["int8"]
    assert more[0]["drift_max"] > 0
    monkeypatch.delattr(storage, "encode_texts")  # nothing is encoded when nothing is missing
    assert run_benchmark(storage.main, *case, "--codecs", "int8,fp32")[0] == []
    assert storage.read_rows(tmp_path / "out" / "storage.jsonl") == first + more


def test_pairs_alone_have_margins_and_no_measures(
    mini_folder: Path, toy: Path, tmp_path: Path, run_benchmark: Run
) -> None:
    case = ("--beir", toy, "--out", tmp_path / "out", "--model", mini_folder, "--codecs", "int4", "--chunk-sizes", "2")
    (row,), report = run_benchmark(storage.main, *case, "--k", 3, "--max-queries", 1, "--pairs-only")
    assert row["queries"] == 1
    assert row["drift_mean"] > 0
    assert not {"ndcg@10", "ndcg_change", "recall@10"} & set(row)
    assert "Kendall" in report
    assert "nDCG" not in report
    assert (tmp_path / "out" / "storage.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_error_names_the_extra_and_nothing_is_measured(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert storage.main(["--beir", str(toy), "--out", str(tmp_path / "out")]) == 1
    assert "kalm-cache[bench]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ndcg_changes_are_paired_by_query() -> None:
    task = BeirTask("toy", "test", {"p": "…", "q": "…"}, {"p": {"a": 1}, "q": {"b": 1}})
    collection = storage.Collection(task, Questions(["…", "…"], [[0, 1], [0, 1]], ["…", "…"]), ["a", "b"])
    exact = np.array([[2.0, 1.0], [1.0, 2.0]])  # both relevant passages first
    swapped = np.array([[1.0, 2.0], [1.0, 2.0]])  # the first query's second
    loss = 1 - 1 / np.log2(3)
    assert storage.quality_of(collection, exact, swapped) == {
        "ndcg@10": round(1 - loss / 2, 4),
        "recall@10": 1.0,
        "ndcg_change": round(-loss / 2, 4),
        "ndcg_change_se": round(loss / 2, 4),  # of two values 0 and -loss: loss / √2 / √2
    }


@pytest.mark.parametrize("passages_given", [3, 1000])
def test_file_bytes_are_those_of_a_large_sealed_store_however_few_passages_there_are(passages_given: int) -> None:
    codec, states = get_codec("fp16"), [np.ones((8, 64), np.float32)] * passages_given
    passages = [PooledPassage(32, False, torch.from_numpy(one)) for one in states]
    payloads = storage.store(codec, states).payloads
    size = storage.file_bytes(codec, 4, passages, payloads, 64)
    assert 1 < size / (8 * 64 * 2) < 1.10


def test_state_errors_are_relative_to_all_states() -> None:
    exact, found = [np.array([[3.0]], np.float32), np.array([[4.0]], np.float32)], [np.zeros((1, 1), np.float32)] * 2
    assert storage.relative_error(exact, found) == 1.0
    assert storage.relative_error(exact, [exact[0], found[1]]) == pytest.approx(4 / 5)


def test_the_report_says_whether_the_goal_is_met_and_what_colbert_takes(row: dict[str, Any]) -> None:
    worse = row | {"r": 32, "ndcg_change": -0.01, "ndcg_change_se": None, "kendall": 0.98}
    report = markdown_report([worse, row | {"codec": "fp32"}, row])
    assert "2 bits 36 B/token = 5,400 B" in report
    assert "1 bit 20 B/token = 3,000 B" in report
    assert (
        "- int4, r = 4: nDCG@10 -0.0012 ± 0.0003 (met: within 0.002 of fp32), Kendall 0.9712 (missed: ≥ 0.98)" in report
    )
    assert "- int4, r = 32: nDCG@10 -0.0100 (missed: within 0.002 of fp32), Kendall 0.9800 (met: ≥ 0.98)" in report
    assert "| int4 | 4 | 5,000 | 5,100 | 33.3 | 4,290 | 50 | 1,234 | 0.0800 | 0.0400 | 0.200 | 0.9712 |" in report
    assert "- fp32" not in report


def test_other_samples_and_other_models_are_groups_of_their_own(row: dict[str, Any]) -> None:
    others = [row | {"queries": 10}, row | {"checkpoint": "def"}, row | {"codec": "int8"}]
    assert [len(group) for group in groups_of([row, *others])] == [2, 1, 1]


def test_codecs_that_round_by_a_sensitivity_are_measured_without_and_with_it() -> None:
    codecs = storage.codecs_of(["fp32", "int4", "bf16+zstd3"], np.eye(64))
    assert list(codecs) == ["fp32", "int4", "int4 by sensitivity", "bf16+zstd3"]
    assert list(storage.codecs_of(["fp32", "int4"], None)) == ["fp32", "int4"]
