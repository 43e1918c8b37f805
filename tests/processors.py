"""The tests whose numbers depend on the processor, under one environment after another.

    python -m tests.processors [--whole] [NAME ...]      all environments, or those named

An environment hides instruction sets from torch, oneDNN or the compiler of the native kernels, or takes away threads,
UTF-8 or a home folder that can be written to. Knows nothing of what the tests compute. Prints a line for each
environment, then a table; ends with 1 when a test failed in any, or when one had no tests that passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROCESSOR_TESTS = (
    "tests/model",
    "tests/scoring",
    "tests/codec",
    "tests/index",
    "tests/first_stage/dense",
    "tests/training/test_layers.py",
    "tests/test_reranker.py",
    "tests/test_bundled.py",
    "tests/adapters/test_cross_encoder.py",
)
UNWRITABLE = "/sys" if Path("/sys").is_dir() else os.devnull + "/home"  # root may write wherever permissions rule
X86 = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "KALM_CACHE_KERNEL_MARCH": "x86-64-v3",  # who multiplies int8 then
    },
    "sse41": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "kernels-v3": {"KALM_CACHE_KERNEL_MARCH": "x86-64-v3"},
    "kernels-v2": {"KALM_CACHE_KERNEL_MARCH": "x86-64-v2"},
}
ANY = {
    "as-it-is": {},
    "torch-kernels": {"KALM_CACHE_KERNELS": "torch"},
    "one-thread": {"OMP_NUM_THREADS": "1"},
    "locale-c": {"LC_ALL": "C"},
    "home-read-only": {"HOME": UNWRITABLE, "XDG_CACHE_HOME": ""},
}
PARALLEL = ("-n", "2", "--dist", "loadfile") if importlib.util.find_spec("xdist") else ()
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = ANY | (X86 if platform.machine() in ("x86_64", "AMD64") else {})


@dataclass(frozen=True, slots=True)
class Result:
    """What pytest's last line counts, by word, and the lines that name failed tests."""

    name: str
    counts: Mapping[str, int]
    failures: Sequence[str]
    exit_code: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Tests passed, and none failed."""
        return self.exit_code == 0 and self.counts.get("passed", 0) > 0

    def cells(self) -> list[str]:
        """The row of the table."""
        counts = [str(self.counts.get(word, 0)) for word in ("passed", "failed", "errors", "skipped")]
        return [self.name, *counts, f"{self.seconds:.0f}", "ok" if self.ok else "FAILED"]


def counts_of(output: str) -> dict[str, int]:
    """`3 failed, 10 passed, 1 error in 2.5s` -> {"failed": 3, "passed": 10, "errors": 1}."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped)", lines[-1]) if lines else []
    return {"errors" if word == "error" else word: int(count) for count, word in found}


def run(name: str, tests: Sequence[str]) -> Result:
    """Run these tests in the environment of that name."""
    options = ("-m", "not slow", "-rfE", "--tb=line", "-p", "no:cacheprovider", *PARALLEL)
    command = [sys.executable, "-m", "pytest", *options, *tests]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENTS[name], capture_output=True, text=True)
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1):
        failures.append(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return Result(name, counts_of(done.stdout), failures, done.returncode, time.monotonic() - started)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every environment that was asked for; 0 when all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(ENVIRONMENTS)}")
    parser.add_argument("--whole", action="store_true", help="the whole suite, not its processor-dependent part")
    args = parser.parse_args(arguments)
    if unknown := set(args.names) - ENVIRONMENTS.keys():
        parser.error(f"unknown here: {', '.join(sorted(unknown))}")
    results = []
    for name in args.names or ENVIRONMENTS:
        results.append(run(name, ["tests"] if args.whole else PROCESSOR_TESTS))
        setting = " ".join(f"{key}={value}" for key, value in ENVIRONMENTS[name].items())
        print(" ".join(results[-1].cells()), f"[{setting}]", *results[-1].failures, sep="\n  ", flush=True)
    heading = ["environment", "passed", "failed", "errors", "skipped", "seconds", ""]
    print(f"\n{table([heading, *(result.cells() for result in results)])}")
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
