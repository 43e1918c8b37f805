"""From ten thousand to a million passages: build rate, memory, opening, lookup and search.

    OMP_NUM_THREADS=1 python -m benchmarks.scale [--sizes 10000,100000,1000000] [--folder DIR] [--dense-index auto]

Each step runs in a process of its own, which imports what the step needs and no more, so that its memory is the step's.
Prints one JSON line for each step and size, then Markdown tables; progress goes to stderr. A million takes about six
minutes and 1.5 GB of disk for the first stage, and some ten minutes and 5 GB for the store (`--parts`).
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale.steps import Column, Part, Step, run_step

PARTS = ("store", "first_stage")
DEFAULT_SIZES = "10000,100000,1000000"


def load_part(name: str) -> Part:
    """The part of that name; the others, and what they import, stay out of a step's process."""
    part: Part = importlib.import_module(f"benchmarks.scale.{name}").PART
    return part


def measure(part: Part, step: str, size: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run one step in a process of its own; the row that it printed."""
    command = [sys.executable, "-m", "benchmarks.scale", "--step", f"{part.name}.{step}", "--sizes", str(size)]
    done = subprocess.run([*command, "--folder", str(folder), *options], stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"part": part.name, "step": step, "passages": size, **row}


def table(columns: Sequence[Column], rows: list[dict[str, Any]]) -> str:
    """One line for each measured size."""
    from benchmarks.timing import markdown

    sizes = sorted({row["passages"] for row in rows})
    lines = []
    for size in sizes:
        steps = {row["step"]: row for row in rows if row["passages"] == size}
        lines.append([f"{size:,}", *(column.show(steps) for column in columns)])
    return markdown(["passages", *(column.title for column in columns)], lines)


def main(arguments: list[str] | None = None) -> int:
    """Run every step of every part for every size, or one step in this very process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=DEFAULT_SIZES, help="numbers of passages")
    parser.add_argument("--parts", default=",".join(PARTS), help="of: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the indexes are built and stay; default: a temporary folder")
    parser.add_argument("--dense-index", default="auto", choices=("auto", "flat", "hnsw", "ivf"))
    parser.add_argument("--step", help="run this part.step alone, in this process")
    args = parser.parse_args(arguments)
    sizes = [int(size) for size in args.sizes.split(",")]
    if args.step:
        name, step = args.step.split(".")
        print(json.dumps(run_step(load_part(name).steps[step], Step(sizes[0], args.folder, args.dense_index))))
        return 0
    chosen = [load_part(name) for name in args.parts.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        run(chosen, sizes, args.folder or Path(temporary), ["--dense-index", args.dense_index])
    return 0


def run(parts: list[Part], sizes: list[int], folder: Path, options: list[str]) -> None:
    """Measure, print lines, then tables."""
    import torch

    from benchmarks.timing import emit, machine, progress

    emit({"machine": machine(torch.device("cpu"))})
    for part in parts:
        rows = []
        for size in sizes:
            place = folder / part.name / str(size)
            place.mkdir(parents=True, exist_ok=True)
            for step in part.steps:
                progress(f"{part.name}, {size:,} passages: {step}")
                rows.append(measure(part, step, size, place, options))
                emit(rows[-1])
        for title, columns in part.tables.items():
            print(f"\n### {title}\n\n{table(columns, rows)}")


if __name__ == "__main__":
    raise SystemExit(main())
