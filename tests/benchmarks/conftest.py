"""Benchmarks print what they found: tests read the JSON lines back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture
def run_benchmark(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call a benchmark's `main` with arguments: its JSON lines, and what it printed after them."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> tuple[list[dict[str, Any]], str]:
        assert main([str(argument) for argument in arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        return (
            [json.loads(line) for line in lines if line.startswith("{")],
            "\n".join(line for line in lines if not line.startswith("{")),
        )

    return run
