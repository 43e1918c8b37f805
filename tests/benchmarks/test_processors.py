"""The command that compares classes of processors: its tables, how a class is posed, and ONNX Runtime's contender."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.processors import __main__ as processors
from benchmarks.processors import classes
from benchmarks.processors.classes import classes_here
from benchmarks.rerank.cross_encoders import CROSS_ENCODERS, CrossEncoder
from benchmarks.rerank.onnx_models import OnnxCrossEncoder
from kalm_cache.errors import UsageError
from tests.benchmarks.conftest import Run

SMALL = replace(CROSS_ENCODERS["minilm-l6"], vocab_size=500, hidden_size=48, intermediate_size=96, layers=2)
CPU = torch.device("cpu")
MS = {
    "reference:float32": 600.0,
    "minilm-l6:float32": 50.0,
    "minilm-l6-onnx:float32": 40.0,
    "minilm-l6-onnx:int8": 20.0,
    "cached:float32": 90.0,
    "cached:bfloat16": 45.0,
    "cached:int8": 30.0,
    "prefix-float32:float32": 18.0,
    "prefix-bfloat16:bfloat16": 9.0,
    "prefix-bfloat16:int8": 6.0,
}


def lines_of(name: str) -> list[dict[str, Any]]:
    timed = [{"class": name, "contender": key, "median_ms_per_item": ms} for key, ms in MS.items()]
    bare = [{"class": name, "side": "decoder", "dtype": dtype, "ratio": 1.25} for dtype in processors.DTYPES]
    return [{"class": name, "benchmark": "rerank"}, *timed, *bare]


def test_every_contender_has_a_row_with_its_time_and_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    table = processors.times_table([*lines_of("one"), *lines_of("two")])
    assert "| ms a pair (× the reference) | one | two |" in table
    assert "| kalm-cache, int8, cold | 30 (20 ×) | 30 (20 ×) |" in table
    assert "| kalm-cache, int8, warm | 6 (100 ×) | 6 (100 ×) |" in table
    assert "| MiniLM-L6-shaped, ONNX Runtime, int8 | 20 (30 ×) | 20 (30 ×) |" in table
    assert len(table.splitlines()) == 2 + len(MS)


def test_the_ratios_are_of_cold_to_float32_and_to_warm_and_of_the_decoder_to_its_products() -> None:
    table = processors.ratios_table(lines_of("one"))
    assert "| int8, cold: times as fast as float32 | 3 |" in table
    assert "| int8: warm, times as fast as cold | 5 |" in table
    assert "| bfloat16: decoder ÷ its bare products | 1.25 |" in table


def test_a_class_is_posed_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "import json, os, sys\nprint('a table')\n"
    code += "print(json.dumps({'isa': os.environ['ONEDNN_MAX_CPU_ISA'], 'arguments': sys.argv[1:]}))\n"
    (tmp_path / "posed_benchmark.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = processors.run_posed("avx2", "posed_benchmark", ["--tokens", "3"])
    assert rows == [{"class": "avx2", "isa": "AVX2", "arguments": ["--tokens", "3"]}]


def test_a_processor_poses_as_every_class_that_it_has_the_instructions_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "cpu_capabilities", lambda: {"avx2": True, "avx512_vnni": True, "amx_int8": False})
    assert classes_here() == ["avx512-vnni", "avx2"]


def test_a_class_that_it_cannot_pose_as_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processors, "classes_here", lambda: ["avx2"])
    with pytest.raises(SystemExit):
        processors.parse_arguments(["--classes", "amx,avx2"])
    assert "cannot pose as: amx; here: avx2" in capsys.readouterr().err


def test_both_benchmarks_run_once_for_each_class(
    monkeypatch: pytest.MonkeyPatch, run_benchmark: Run, tmp_path: Path
) -> None:
    calls = []

    def run_posed(name: str, module: str, arguments: list[str]) -> list[dict[str, Any]]:
        calls.append((name, module, arguments[arguments.index("--candidates") + 1]))
        return [row for row in lines_of(name) if ("side" in row) == (module == "benchmarks.roofline")]

    monkeypatch.setattr(processors, "classes_here", lambda: ["avx512-vnni", "avx2"])
    monkeypatch.setattr(processors, "run_posed", run_posed)
    rows, tables = run_benchmark(processors.main, "--model", tmp_path, "--quick")
    assert calls == [
        (name, f"benchmarks.{module}", "16") for name in ("avx512-vnni", "avx2") for module in ("rerank", "roofline")
    ]
    assert len(rows) == 2 * len(lines_of("avx2"))
    assert "| kalm-cache, int8, cold | 30 (20 ×) | 30 (20 ×) |" in tables


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.int8, 0.05)])
def test_onnx_runtime_gives_the_scores_of_the_same_weights(dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("onnxruntime")
    onnx, torchs = OnnxCrossEncoder(SMALL, dtype, CPU), CrossEncoder(SMALL, torch.float32, CPU)
    pairs = torchs.pairs(5, 30, seed=3)
    expected = torchs.scores(pairs, 2)
    assert onnx.scores(pairs, 2) == pytest.approx(expected, abs=tolerance)
    assert (onnx.scores(pairs, 2) == pytest.approx(expected, abs=1e-6)) is (dtype == torch.float32)


def test_without_onnx_runtime_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"onnxruntime is not installed: pip install 'kalm-cache\[bench\]'"):
        OnnxCrossEncoder(SMALL, torch.float32, CPU)


def test_onnx_runtime_is_not_measured_in_bfloat16() -> None:
    with pytest.raises(UsageError, match=r"float32 and int8 on a CPU, not in torch\.bfloat16"):
        OnnxCrossEncoder(SMALL, torch.bfloat16, CPU)


@pytest.mark.slow
def test_a_whole_run_on_the_smallest_class_gives_both_tables(mini_folder: Path, run_benchmark: Run) -> None:
    pytest.importorskip("onnxruntime")
    rows, tables = run_benchmark(
        processors.main, "--model", mini_folder, "--quick", "--tokens", 24, "--classes", classes_here()[-1]
    )
    assert {row["class"] for row in rows} == {classes_here()[-1]}
    assert "kalm-cache, int8, warm" in tables
    assert "int8: decoder ÷ its bare products" in tables
