"""What a part of `benchmarks.scale` is made of, and how the memory and time of a step are taken. Imports little."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
Rows = Mapping[str, Mapping[str, Any]]  # of one size, by step


@dataclass(frozen=True, slots=True)
class Step:
    """What a step is told: how many passages, the folder that all steps of this size share, and options."""

    passages: int
    folder: Path
    dense_index: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its title, and its cell from the rows of a size by step."""

    title: str
    show: Callable[[Rows], str]


@dataclass(frozen=True, slots=True)
class Part:
    """Steps by name, in the order they run, and the tables' columns by title."""

    name: str
    steps: Mapping[str, Callable[[Step], dict[str, Any]]]
    tables: Mapping[str, tuple[Column, ...]]


def memory(step: str) -> Column:
    """The peak of a step: without the files that it has mapped, and with them."""

    def show(rows: Rows) -> str:
        return f"{rows[step]['peak_own_bytes'] / MIB:,.0f} / {rows[step]['peak_rss_bytes'] / MIB:,.0f}"

    return Column("own / resident, MiB", show)


def run_step(step: Callable[[Step], dict[str, Any]], told: Step) -> dict[str, Any]:
    """The step's row with its seconds, by the clock and of the processor, and its memory.

    `peak_rss_bytes` is with mapped files, `peak_own_bytes` without.
    """
    peak = [status_bytes("RssAnon")]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], status_bytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, worked = time.perf_counter(), time.process_time()
    try:
        row = step(told)
    finally:
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
        over.set()
        watcher.join()
    return {
        **row,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "peak_rss_bytes": status_bytes("VmHWM"),  # ru_maxrss would begin with what the parent had when it forked
        "peak_own_bytes": peak[0],
    }


def status_bytes(field: str) -> int:
    """Of this process: `VmHWM`, the most that was resident; `RssAnon`, what is and no file backs. 0 without /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def latencies_ms(calls: int, call: Callable[[int], object]) -> dict[str, float]:
    """p50, p95 and p99 of single calls, after a tenth of them to warm up."""
    for index in range(calls // 10):
        call(index)
    taken = []
    for index in range(calls):
        started = time.perf_counter()
        call(index)
        taken.append(1e3 * (time.perf_counter() - started))
    taken.sort()
    return {f"p{percent}_ms": round(taken[calls * percent // 100], 3) for percent in (50, 95, 99)}
