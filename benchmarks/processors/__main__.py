"""Milliseconds a pair in each dtype, cold and warm, on each class of processor that this one can pose. One table.

    python -m benchmarks.processors [--quick] [--classes avx512-vnni,avx2] [--model DIR]

For each class, one after the other, `benchmarks.rerank` and `benchmarks.roofline` run in processes from which the
larger instruction sets are hidden (`classes.py`). Contenders are our decoder with an empty prefix cache (cold) and with
a full one (warm; it keeps bfloat16, or float32 in a float32 run), the published reference, and a MiniLM-L6-shaped
cross-encoder in torch and in ONNX Runtime. From ONNX Runtime nothing can be hidden: its rows are of the true processor.

Without `--model`, a checkpoint in Nano's shape with random weights is made for the run. `--quick` takes half the
candidates and fewer rounds. Prints the JSON lines of all runs, and two tables: milliseconds a pair, and the ratios that
matter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processors.classes import CLASSES, classes_here
from benchmarks.timing import markdown, progress, short

DTYPES = ("float32", "bfloat16", "int8")
CACHED = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}  # what a warm prefix cache of a run keeps
OURS = {
    **{f"kalm-cache, {dtype}, cold": f"cached:{dtype}" for dtype in DTYPES},
    **{f"kalm-cache, {dtype}, warm": f"prefix-{CACHED[dtype]}:{dtype}" for dtype in DTYPES},
}
BASELINES = {
    "reference, float32": "reference:float32",
    "MiniLM-L6-shaped, torch, float32": "minilm-l6:float32",
    "MiniLM-L6-shaped, ONNX Runtime, float32": "minilm-l6-onnx:float32",
    "MiniLM-L6-shaped, ONNX Runtime, int8": "minilm-l6-onnx:int8",
}
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured: candidates of ours, of the others, and rounds."""

    candidates: int
    others: int
    rounds: int


FULL, QUICK = Effort(32, 8, 5), Effort(16, 4, 3)


def measure_class(name: str, model: Path, effort: Effort, tokens: int) -> Rows:
    """The JSON lines of both benchmarks in a process that poses as that class."""
    common = ("--model", model, "--tokens", tokens, "--candidates", effort.candidates, "--repeats", effort.rounds)
    shared = [str(argument) for argument in common]
    rerank = ["--ours", ",".join(OURS.values()), "--baselines", ",".join(BASELINES.values())]
    rerank += ["--baseline-candidates", str(effort.others)]
    return [
        *run_posed(name, "benchmarks.rerank", [*shared, *rerank]),
        *run_posed(name, "benchmarks.roofline", [*shared, "--sides", "decoder", "--dtypes", ",".join(DTYPES)]),
    ]


def run_posed(name: str, module: str, arguments: Sequence[str]) -> Rows:
    """The JSON lines of a benchmark that runs as if on that class; what it says on stderr goes through."""
    progress(f"{name}: {module}")
    command = [sys.executable, "-m", module, *arguments]
    environment = os.environ | CLASSES[name].environment
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [{"class": name} | json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def milliseconds(rows: Rows) -> dict[str, dict[str, float]]:
    """Median milliseconds a pair by contender (`kind:dtype`) and class."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if "contender" in row:
            found.setdefault(row["contender"], {})[row["class"]] = row["median_ms_per_item"]
    return found


def times_table(rows: Rows) -> str:
    """A row for each contender: milliseconds a pair on each class, and how many times as fast as the reference."""
    taken = milliseconds(rows)
    names = list(dict.fromkeys(row["class"] for row in rows))
    reference = taken["reference:float32"]
    lines = [
        [label, *(f"{short(taken[key][name])} ({short(reference[name] / taken[key][name])} ×)" for name in names)]
        for label, key in {**BASELINES, **OURS}.items()
    ]
    return markdown(["ms a pair (× the reference)", *names], lines)


def ratios_table(rows: Rows) -> str:
    """int8 against float32, warm against cold, and the decoder against its bare products, on each class."""
    taken = milliseconds(rows)
    names = list(dict.fromkeys(row["class"] for row in rows))
    bare = {(row["class"], row["dtype"]): row["ratio"] for row in rows if "side" in row}

    def times(slow: str, fast: str) -> list[str]:
        return [short(taken[slow][name] / taken[fast][name]) for name in names]

    lines = [
        *(
            [f"{dtype}, cold: times as fast as float32", *times("cached:float32", f"cached:{dtype}")]
            for dtype in DTYPES[1:]
        ),
        *(
            [f"{dtype}: warm, times as fast as cold", *times(f"cached:{dtype}", f"prefix-{CACHED[dtype]}:{dtype}")]
            for dtype in DTYPES
        ),
        *([f"{dtype}: decoder ÷ its bare products", *(short(bare[name, dtype]) for name in names)] for dtype in DTYPES),
    ]
    return markdown(["", *names], lines)


@contextmanager
def checkpoint(model: Path | None) -> Iterator[Path]:
    """The folder that was given, or one with random weights in Nano's shape, removed afterwards."""
    if model is not None:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "nano-shaped")
        progress("making a checkpoint in Nano's shape")
        command = [sys.executable, "-m", "benchmarks.checkpoints", "--shape", "nano", "--out", str(made)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        yield made


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    here = classes_here()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint folder; a random one in Nano's shape by default")
    parser.add_argument("--classes", default=",".join(here), help=f"here: {', '.join(here)}")
    parser.add_argument("--tokens", type=int, default=256, help="of a passage")
    parser.add_argument("--quick", action="store_true", help="half the candidates, fewer rounds")
    args = parser.parse_args(arguments)
    args.classes = args.classes.split(",")
    if missing := [name for name in args.classes if name not in here]:
        parser.error(f"this processor is none of, and cannot pose as: {', '.join(missing)}; here: {', '.join(here)}")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every class."""
    args = parse_arguments(arguments)
    rows: Rows = []
    with checkpoint(args.model) as model:
        for name in args.classes:
            measured = measure_class(name, model, QUICK if args.quick else FULL, args.tokens)
            for row in measured:
                print(json.dumps(row), flush=True)
            rows += measured
    print(f"\n{times_table(rows)}\n\n{ratios_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
