from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import encode
from kalm_cache.model.checkpoint import BUNDLED_TINY
from tests.benchmarks.conftest import Run


def test_ours_and_transformers_encode_the_same_states(mini_folder: Path, run_benchmark: Run) -> None:
    (first, *rows), table = run_benchmark(
        encode.main, "--model", mini_folder, "--passages", 5, "--max-length", 48, "--batch-tokens", 100,
        "--batch-size", 2, "--ours", "float32", "--baselines", "input:float32,sorted:float32", "--repeats", 1,
    )  # fmt: skip
    assert [row["contender"] for row in rows] == ["ours:float32", "input:float32", "sorted:float32"]
    for row in rows:
        assert row["passages"] == len(first["lengths"]) == 5
        assert row["tokens"] == sum(first["lengths"])
        assert row["compared_with"] == "input:float32"
        assert row["largest_state_difference"] < 1e-4
        assert row["tokens_per_s_best"] >= row["tokens_per_s"] > 0
    assert rows[0]["times_ours"] == {"ours:float32": 1.0}
    assert "sorted:float32" in table


def test_lengths_are_those_of_passages_spread_over_the_corpus(tmp_path: Path) -> None:
    words = [1, 2, 3, 4, 200, 6]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(f'{{"id": "{i}", "text": "{"a " * n}"}}\n' for i, n in enumerate(words)))
    lengths = encode.corpus_lengths(corpus, BUNDLED_TINY, 3, 50)
    assert len(lengths) == 3
    assert lengths[0] < lengths[1] < lengths[2] == 50  # passages 0, 2 and 4, the last one cut


def test_padding_is_masked() -> None:
    ids, mask = encode.pad([[5, 6, 7], [8]])
    assert torch.equal(ids, torch.tensor([[5, 6, 7], [8, 0, 0]]))
    assert torch.equal(mask, torch.tensor([[1, 1, 1], [1, 0, 0]]))
