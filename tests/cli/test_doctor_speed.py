"""What `kalm-cache doctor` says of dtypes: by products of matrices, and on the model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kalm_cache.doctor import machine, speed
from kalm_cache.model.layers import int8
from kalm_cache.model.layers.int8 import Int8Products
from kalm_cache.settings import load_settings
from tests.cli.conftest import Run
from tests.cli.test_doctor import diagnosis


def test_a_dtype_that_is_slower_than_another_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {torch.float32: 100.0, torch.bfloat16: 1000.0, torch.int8: 3000.0}
    monkeypatch.setattr(machine, "gflops", lambda dtype, device: speeds[dtype])
    assert "bfloat16 is 10.0 times as fast" in machine.check_dtype("cpu", "float32").advice
    assert machine.check_dtype("cpu", "bfloat16").status == "ok"  # int8 is faster yet, but moves margins
    assert machine.check_dtype("cpu", "int8").status == "ok"


def test_who_multiplies_int8_is_said_and_why_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gflops", lambda dtype, device: 100.0)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "int8_products", lambda: Int8Products("native, AVX2", lambda x, weight, out: None))
    assert machine.check_dtype("cpu", "float32").found.endswith("int8 100; int8 by native, AVX2")
    slow = Int8Products("float32", lambda x, weight, out: None, "there is no compiler")
    monkeypatch.setattr(machine, "int8_products", lambda: slow)
    assert machine.check_dtype("cpu", "float32").found.endswith("int8 by float32, refused: there is no compiler")


def test_each_dtype_is_measured_on_the_model_that_would_be_served(
    run: Run, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KALM_CACHE_PORT", "0")
    monkeypatch.setattr("kalm_cache.cli.commands.doctor.MEASURED_S", 0.001)
    found = diagnosis(run, "--index", index, "--measure")["speed"]["found"]
    assert re.match(
        r"ms a pair: float32 [\d.e+]+, bfloat16 [\d.e+]+, int8 [\d.e+]+; dtype \w+ is \w+(, the one to use)?$", found
    )


@pytest.mark.parametrize(
    ("terminal", "arguments", "measured"),
    [
        (True, (), True),
        (True, ("--no-measure",), False),
        (True, ("--json",), False),
        (False, (), False),
        (False, ("--measure",), True),
    ],
)
def test_dtypes_are_measured_for_a_person_at_a_terminal_unless_they_say_otherwise(
    run: Run, monkeypatch: pytest.MonkeyPatch, terminal: bool, arguments: tuple[str, ...], measured: bool
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("kalm_cache.doctor.diagnose", lambda index, config, seconds: asked.append(seconds) or [])
    monkeypatch.setattr(
        "kalm_cache.cli.commands.doctor.sys", SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: terminal))
    )
    result = run("doctor", *arguments)
    assert asked == [10.0 if measured else 0.0]
    assert ("timing the model in each dtype for 10 s (--no-measure leaves it out)" in result.stderr) is measured


def test_a_dtype_that_is_refused_is_measured_in_the_others_alone(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Int8Products("float32", lambda x, weight, out: None, "there is no compiler")
    monkeypatch.setattr(int8, "int8_products", lambda: slow)
    monkeypatch.delenv("KALM_CACHE_KERNELS", raising=False)
    found = speed.check_speed(load_settings(), index, 0.001).found
    assert re.match(
        r"ms a pair: float32 [\d.e+]+, bfloat16 [\d.e+]+; .*; dtype int8 is slower than float32 here: ", found
    )


def test_without_the_model_nothing_is_measured(tmp_path: Path) -> None:
    assert speed.check_speed(load_settings(model=str(tmp_path)), None, 0.001).found.startswith("not measured: ")


@pytest.mark.parametrize(
    ("times", "chosen", "advice"),
    [
        (
            {torch.float32: 4.0, torch.bfloat16: 2.0},
            torch.float32,
            ["bfloat16 is 2.0 times as fast: set "],
        ),
        (
            {torch.float32: 4.0, torch.bfloat16: 8.0},
            torch.bfloat16,
            ["float32 is 2.0 times as fast: set "],
        ),
        ({torch.float32: 4.0, torch.bfloat16: 3.9}, torch.float32, []),
        ({torch.float32: 4.0, torch.bfloat16: 8.0, torch.int8: 1.0}, torch.int8, []),
        ({torch.float32: 4.0, torch.bfloat16: 8.0, torch.int8: 1.0}, torch.float32, ["int8 is 4.0 times as fast as"]),
    ],
)
def test_the_fastest_exact_dtype_is_advised_and_int8_with_a_warning(
    times: dict[torch.dtype, float], chosen: torch.dtype, advice: list[str]
) -> None:
    given = speed._advice(times, chosen)
    assert [given_line.startswith(line) for given_line, line in zip(given, advice, strict=True)] == [True] * len(advice)
