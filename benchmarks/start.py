"""From exec to the answer of `kalm-cache search`, and to a `serve` that is ready, against `python -c "import torch"`.

    python -m benchmarks.start [--serve tiny,NANO] [--passages 60] [--repeats 7] [--folder DIR]

An index of the first passages of the bundled corpus is made for the bundled model, and for each model of `--serve`.
Every contender runs in turn, as a process of its own with the files in memory: seconds of the clock until its end, or
until `/ready` says 200, and seconds of the processor. Prints JSON lines, then a Markdown table with medians and their
ratio to importing torch; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import torch

from benchmarks.serve.process import serving
from benchmarks.timing import emit, machine, markdown, progress, short, significant
from indexer.build.index_job import load_encoders, run_index_job
from indexer.corpus import read_corpus
from kalm_cache.settings import load_settings

CORPUS = Path(__file__).parent.parent / "kalm_cache" / "bundled" / "demo" / "corpus.jsonl.zst"
KALM_CACHE = (sys.executable, "-c", "from kalm_cache.cli import main; main()")
QUESTION = "Who was the first director of the V&A?"
CPU = torch.device("cpu")


class Taken(NamedTuple):
    """Seconds of one run: by the clock, and of the processor."""

    wall_s: float
    cpu_s: float


def timed(*command: str) -> Taken:
    """A command that must succeed, until it has ended."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
    return Taken(time.perf_counter() - started, used.ru_utime + used.ru_stime)


def until_ready(index: Path, model: str) -> Taken:
    """`kalm-cache serve`, until it answers that it is ready."""
    started = time.perf_counter()
    with serving(index, "--model", model) as service:
        while httpx.get(f"http://{service.host}:{service.port}/ready").status_code != 200:
            time.sleep(0.01)
        return Taken(time.perf_counter() - started, service.cpu_s)


def build(folder: Path, model: str, passages: int) -> Path:
    """An index of the first passages of the bundled corpus."""
    settings = load_settings(model=model, device="cpu", max_length=128, chunk_size=4)
    lines = itertools.islice(read_corpus(CORPUS), passages)
    encoders = load_encoders(settings)
    run_index_job(lines, folder, settings, encoders, on_reject=print, on_progress=lambda counts: None)
    return folder


def measure(runs: dict[str, Callable[[], Taken]], repeats: int) -> dict[str, list[Taken]]:
    """Every run once, uncounted; then all of them in turn, forwards and backwards."""
    taken: dict[str, list[Taken]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        progress(f"round {turn} of {repeats}")
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            one = runs[name]()
            if turn:
                taken[name].append(one)
    return taken


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", default="tiny", help="models that are served, with commas; empty: none")
    parser.add_argument("--passages", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where indexes are made; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        tiny = build(Path(folder) / "search", "tiny", args.passages)
        runs: dict[str, Callable[[], Taken]] = {
            "import torch": lambda: timed(sys.executable, "-c", "import torch"),
            "search": lambda: timed(*KALM_CACHE, "search", QUESTION, "--index", str(tiny), "--device", "cpu"),
        }
        for i, model in enumerate(filter(None, args.serve.split(","))):
            index = build(Path(folder) / f"serve-{i}", model, args.passages)
            runs[f"serve {Path(model).name}"] = lambda index=index, model=model: until_ready(index, model)  # type: ignore[misc]
        taken = measure(runs, args.repeats)
    emit(machine(CPU) | {"passages": args.passages, "repeats": args.repeats})
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}
    base, table = medians["import torch"], []
    for name, (wall_s, cpu_s) in medians.items():
        times = wall_s / base[0], cpu_s / base[1]
        seconds = {"wall_s": significant(wall_s), "cpu_s": significant(cpu_s)}
        ratios = {"times_import_torch": significant(times[0]), "times_its_cpu": significant(times[1])}
        emit({"contender": name} | seconds | ratios)
        table.append([name, *map(short, (wall_s, cpu_s, *times))])
    print(markdown(["", "s", "processor s", "times import torch", "its processor s"], table))


if __name__ == "__main__":
    main()
