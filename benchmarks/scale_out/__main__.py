"""Scaling out, measured: what a build on Ray and a service over shards bring and cost.

    python -m benchmarks.scale_out [--only build driver serve]

- `build`: passages a second with one and two encoders (`build.py`).
- `driver`: memory of the process that drives a build, bytes of receipts, plan and manifest, by passages (`driver.py`).
- `serve`: a router and 1, 2, 4, 8 services beside one process (`serve.py`).

One after the other, as they are by default. Each by itself takes arguments of its own, as
`python -m benchmarks.scale_out.build --help` says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

PARTS = ("build", "driver", "serve")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, each in a process of its own; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    failed = 0
    for part in parser.parse_args(arguments).only:
        print(f"## {part}\n", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.scale_out.{part}"]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
