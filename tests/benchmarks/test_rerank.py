from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.rerank import __main__ as rerank
from benchmarks.rerank import cross_encoders
from benchmarks.rerank.cross_encoders import CROSS_ENCODERS, CrossEncoder
from benchmarks.rerank.pairs import Prompts
from tests.benchmarks.conftest import Run

SMALL_CASE = ("--tokens", 40, "--candidates", 3, "--repeats", 1, "--turn-s", 0, "--batch-size", 2)


def test_every_line_says_what_was_timed_and_all_of_kalm_agree(mini_folder: Path, run_benchmark: Run) -> None:
    (machine, *rows), table = run_benchmark(
        rerank.main, "--model", mini_folder, *SMALL_CASE, "--chunk-sizes", "1,4",
        "--ours", "cached,prefix-float32", "--baselines", "reference,decoder,decoder-no-head",
    )  # fmt: skip
    assert machine["prompt_tokens"] == 65
    assert machine["threads"] == torch.get_num_threads()
    assert [(row["chunk_size"], row["contender"]) for row in rows] == [
        (size, f"{kind}:float32")
        for size in (1, 4)
        for kind in ("cached", "prefix-float32", "reference", "decoder", "decoder-no-head")
    ]
    for row in rows:
        assert row["candidates"] == row["compared_margins"] == 3
        assert row["passage_tokens"] == 40
        assert row["compared_with"] == "reference:float32"
        assert row["largest_margin_difference"] < 1e-4
        assert row["margins_max"] - row["margins_min"] > 1e-2  # the passages do count
        assert row["median_ms"] >= row["min_ms"] > 0
        assert row["median_ms_per_item"] == pytest.approx(row["median_ms"] / 3, rel=1e-3)
        assert row["samples"] >= 1
    assert rows[0]["times_ours"]["cached:float32"] == rows[1]["times_ours"]["prefix-float32:float32"] == 1.0
    assert [row["tokens_read"] for row in rows[:5]] == [65, 12, 105, 65, 65]
    assert "40 tokens, r = 4, N = 3" in table


def test_a_shared_prefix_is_timed_on_what_comes_after_it(mini_folder: Path, run_benchmark: Run) -> None:
    (_, cached, shared), _ = run_benchmark(
        rerank.main, "--model", mini_folder, *SMALL_CASE, "--ours", "cached,shared", "--baselines", ""
    )
    assert (cached["tokens_read"], shared["tokens_read"]) == (65, 12)


def test_baselines_may_read_fewer_passages(mini_folder: Path, run_benchmark: Run) -> None:
    (_, ours, decoder), _ = run_benchmark(
        rerank.main, "--model", mini_folder, *SMALL_CASE, "--baseline-candidates", 1,
        "--ours", "cached", "--baselines", "decoder",
    )  # fmt: skip
    assert (ours["candidates"], decoder["candidates"]) == (3, 1)
    assert ours["compared_margins"] == 1
    ratio = decoder["median_ms_per_item"] / ours["median_ms_per_item"]
    assert decoder["times_ours"]["cached:float32"] == pytest.approx(ratio, rel=5e-3)


def test_other_cross_encoders_are_timed_but_not_compared(
    mini_folder: Path, run_benchmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {name: replace(shape, vocab_size=500, layers=1) for name, shape in CROSS_ENCODERS.items()}
    for name, shape in small.items():
        monkeypatch.setitem(cross_encoders.CROSS_ENCODERS, name, shape)
    (_, _, *rows), _ = run_benchmark(
        rerank.main, "--model", mini_folder, *SMALL_CASE, "--ours", "cached", "--baselines", ",".join(small)
    )
    assert [row["contender"] for row in rows] == [f"{name}:float32" for name in small]
    assert [row["tokens_read"] for row in rows] == [7 + 40 + extra for extra in (3, 4, 72)]
    assert all("largest_margin_difference" not in row for row in rows)


def test_a_run_fails_where_ours_computed_something_else() -> None:
    row = {"contender": "cached:float32", "compared_with": "reference:float32", "largest_margin_difference": 0.01}
    assert rerank.disagreeing([row]) == ["cached:float32 differs by 0.01 from reference:float32"]
    assert rerank.disagreeing([row | {"largest_margin_difference": 1e-5}]) == []
    assert rerank.disagreeing([row | {"contender": "cached:bfloat16"}]) == []


@pytest.mark.parametrize("kind", ["cached:int8", "cached:bfloat16", "prefix-bfloat16:bfloat16", "prefix-int8:int8"])
def test_ours_is_near_in_every_precision(mini_folder: Path, run_benchmark: Run, kind: str) -> None:
    (_, ours, _), _ = run_benchmark(
        rerank.main, "--model", mini_folder, *SMALL_CASE, "--ours", kind, "--baselines", "decoder"
    )
    assert 0 < ours["largest_margin_difference"] < 0.5


@pytest.mark.parametrize(
    ("name", "millions"), [("minilm-l6", 22.7), ("bge-reranker-v2-m3", 567.8), ("qwen3-reranker-0.6b", 595.8)]
)
def test_cross_encoders_have_the_size_of_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        encoder = CrossEncoder(CROSS_ENCODERS[name], torch.float32, torch.device("meta"))
    assert sum(weight.numel() for weight in encoder.model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_minilm_cuts_what_goes_beyond_its_positions() -> None:
    encoder = CrossEncoder(replace(CROSS_ENCODERS["minilm-l6"], layers=1), torch.float32, torch.device("cpu"))
    assert encoder.pair_tokens(7, 1024) == 512
    assert len(encoder.scores(encoder.pairs(3, 512, seed=0), batch_size=2)) == 3


def test_prompts_differ_in_the_query_alone() -> None:
    prompts = Prompts(900)
    first, second = prompts.prompt(1).ids, prompts.prompt(2).ids
    assert len(first) == len(second) == prompts.tokens == 65
    assert first[:53] == second[:53]
    assert first[60:] == second[60:]
    assert first[53:60] != second[53:60]


def test_an_unknown_contender_is_named_with_those_there_are() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"'fast:float32': kinds are cached, .*reference"):
        rerank.contender_names("fast:float32")
    with pytest.raises(argparse.ArgumentTypeError, match="dtypes float32, bfloat16"):
        rerank.contender_names("cached:fp4")
