from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import index_job
from tests.benchmarks.conftest import Run


def test_an_index_job_is_compared_with_its_encoder_on_the_same_tokens(mini_folder: Path, run_benchmark: Run) -> None:
    (first, *rounds), table = run_benchmark(
        index_job.main, "--model", mini_folder, "--passages", 5, "--rounds", 2, "--device", "cpu", "--dtype", "float32",
    )  # fmt: skip
    assert (first["dtype"], first["codec"], first["batch_tokens"] >= 4096) == ("float32", "fp16", True)
    assert [(row["passages"], row["tokens"] > 0) for row in rounds] == [(5, True)] * 2
    for row in rounds:
        assert row["ratio"] == pytest.approx(row["job_tokens_per_s"] / row["encoder_tokens_per_s"], rel=1e-3)
        assert {"plan", "encode", "commit", "seal", "first stage"} <= row["stage_seconds"].keys()
        assert row["stage_bytes"]["encode"] > row["stage_bytes"]["plan"] > 0
    assert "| job ÷ encoder |" in table
