"""Timing in turns: every contender of a run meets the same load, so that their ratios mean something.

Knows nothing of models. Lines are JSON, tables Markdown.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kalm_cache.errors import KalmCacheError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Times:
    """The times of one contender in milliseconds, in the order they were taken."""

    samples_ms: list[float]

    @property
    def median_ms(self) -> float:
        """The middle one."""
        return statistics.median(self.samples_ms)

    @property
    def min_ms(self) -> float:
        """The shortest."""
        return min(self.samples_ms)

    def to_json(self, items: int = 1) -> dict[str, Any]:
        """Median and minimum of a call, and of one of its `items`."""
        return {
            "samples": len(self.samples_ms),
            "median_ms": significant(self.median_ms),
            "min_ms": significant(self.min_ms),
            "median_ms_per_item": significant(self.median_ms / items),
            "min_ms_per_item": significant(self.min_ms / items),
        }


def interleave(
    calls: Mapping[str, Callable[[int], object]], *, repeats: int, turn_s: float, device: torch.device
) -> dict[str, Times]:
    """Time every call, one turn each, round after round; a turn repeats a short call until `turn_s` seconds are over.

    Every call is made once before: compilers and allocators pay there. Every other round goes through the contenders
    backwards, so that none always follows the same one.

    Args:
        calls: what to time, by name; the argument counts that contender's calls, so that each can ask something new.
        repeats: rounds.
        turn_s: shortest turn in seconds; 0 = one call a turn.
        device: waited for after each call, if it is a GPU.
    """
    made = dict.fromkeys(calls, 0)
    samples: dict[str, list[float]] = {name: [] for name in calls}

    def call_ms(name: str) -> float:
        made[name] += 1
        start = time.perf_counter()
        calls[name](made[name])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - start)

    for name in calls:
        call_ms(name)
    for turn in range(repeats):
        progress(f"round {turn + 1} of {repeats}")
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            end = time.perf_counter() + turn_s
            samples[name].append(call_ms(name))
            while time.perf_counter() < end:
                samples[name].append(call_ms(name))
    return {name: Times(taken) for name, taken in samples.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on: processor or GPU, instruction sets, threads, torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", "unknown"),
        "cpus": os.cpu_count(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def emit(row: dict[str, Any]) -> None:
    """Print one JSON line."""
    print(json.dumps(row), flush=True)


def progress(message: str) -> None:
    """Say on stderr how far the run is."""
    print(message, file=sys.stderr, flush=True)


def exit_code(work: Callable[[], object]) -> int:
    """Do the work: 0, or the code of its error, which stderr names."""
    try:
        work()
    except KalmCacheError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def short(value: float) -> str:
    """For a table: three significant digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
