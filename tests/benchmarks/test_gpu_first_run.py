from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_first_run
from tests.benchmarks.conftest import Run

SMALL = ("--device", "cpu", "--dtype", "float32", "--tokens", "256", "--pairs", "2", "--matrix", "16", "--no-tests")


def test_every_stage_writes_a_line_without_a_gpu_too(
    mini_folder: Path, tmp_path: Path, run_benchmark: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALM_CACHE_KERNELS", "auto")  # the run sets it: so it is put back
    monkeypatch.setattr(gpu_first_run, "REPEATS", 1)
    out = tmp_path / "gpu.jsonl"
    lines, _ = run_benchmark(gpu_first_run.main, "--model", mini_folder, "--out", out, *SMALL)
    assert lines == [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    stages = {line["stage"]: line for line in lines}
    assert list(stages) == [
        "versions", "ceilings", "cuda_tests", "parity", "encode", "decode", "launches", "out_of_memory", "sanitizer",
    ]  # fmt: skip
    assert all(line["ok"] for line in lines)
    assert stages["parity"]["torch float32"] < 1e-3 * max(1, stages["parity"]["spread_of_margins"])
    assert {name.split()[-1] for name in stages["decode"]["ms"]} == {"cold", "warm"}
    assert stages["out_of_memory"]["skipped"] == "no GPU"


def test_a_stage_that_fails_ends_no_other() -> None:
    lines: list[dict] = []

    def fails() -> dict:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert gpu_first_run.run_stages({"first": fails, "second": lambda: {"found": 1}}, lines.append) == 1
    assert [(line["stage"], line["ok"]) for line in lines] == [("first", False), ("second", True)]
    assert "illegal memory access" in lines[0]["error"]
