"""Memory of the process that drives a build on Ray, and bytes of receipts, plan and manifest, by passages.

    python -m benchmarks.scale_out.driver [--sizes 10000,100000,1000000] [--shards 8] [--encoders 2]

Plan, build and commit are the real ones, and actors build the shards; only the models are not there, as in the store's
part of `benchmarks.scale`: passages get prepared states. Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scale.first_stage import BATCH, texts
from benchmarks.scale.steps import MIB, Step, run_step
from benchmarks.scale.store import doc_id_of, prepared
from benchmarks.timing import emit, markdown
from indexer.corpus import CorpusLine
from indexer.distributed.jobs import commit_at, plan_at
from indexer.distributed.on_ray.builder import ray_builder
from indexer.distributed.on_ray.encoder import PartitionEncoder
from indexer.distributed.places.folder import FolderPlace
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.passage import Passage

PHASES = ("plan", "build", "commit")


class PreparedEncoder(PartitionEncoder):
    """Builds partitions of prepared states."""

    def load(self) -> str:
        """Load nothing."""
        self._encoders = prepared(bm25=False)[1]
        return "this machine"


def lines(count: int) -> Iterator[CorpusLine]:
    """Synthetic passages, as the store's part of `benchmarks.scale` has them."""
    for batch, start in enumerate(range(0, count, BATCH)):
        for ordinal, text in enumerate(texts(batch, min(BATCH, count - start)), start):
            yield CorpusLine(Passage(doc_id_of(ordinal), text), f"made:{ordinal}")


def measure(count: int, shards: int, encoders: int, folder: Path) -> dict[str, Any]:
    """Index once in this process; memory of each phase, and bytes."""
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # nothing else shall go first
    place, (settings, models) = FolderPlace(folder / "index"), prepared(bm25=False)
    watch = {"on_reject": lambda line: None, "on_progress": lambda counts: None}
    told = Step(count, folder, "flat")
    row: dict[str, Any] = {"passages": count, "shards": shards}
    with ray_builder(None, encoders=encoders, actor=PreparedEncoder) as builder:

        def plan(step: Step) -> dict[str, Any]:
            return {"passages": plan_at(place, lines(count), settings, models, shards=shards, **watch).passages}

        def build(step: Step) -> dict[str, Any]:
            return {"receipts": len(builder.build(place, shards, settings, lambda counts: None))}

        def commit(step: Step) -> dict[str, Any]:
            return {"passages": commit_at(place).passages}

        for name, phase in zip(PHASES, (plan, build, commit), strict=True):
            if name == "commit":
                (building,) = (place.index / "generations").glob("*.building")
                row["receipts_bytes"] = sum(one.stat().st_size for one in building.glob("attempts/*/*.json"))
                row["plan_bytes"] = (building / "plan/plan.json").stat().st_size
            row[name] = run_step(phase, told)
    row["manifest_bytes"] = (open_current(place.index).folder / MANIFEST).stat().st_size
    return row


def main(arguments: list[str] | None = None) -> int:
    """Measure each size in a process of its own, or one in this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000", help="numbers of passages")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--encoders", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    rows = []
    for size in map(int, given.sizes.split(",")):
        if given.one:
            with tempfile.TemporaryDirectory() as folder:
                emit(measure(size, given.shards, given.encoders, Path(folder)))
            return 0
        options = ["--shards", str(given.shards), "--encoders", str(given.encoders)]
        command = [sys.executable, "-m", "benchmarks.scale_out.driver", "--one", "--sizes", str(size), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        emit(rows[-1])
    print(
        markdown(
            ["passages", *(f"{phase}, MiB" for phase in PHASES), "receipts", "plan", "manifest"],
            [
                [
                    f"{row['passages']:,}",
                    *(f"{row[phase]['peak_own_bytes'] / MIB:,.0f}" for phase in PHASES),
                    *(f"{row[f'{name}_bytes']:,}" for name in ("receipts", "plan", "manifest")),
                ]
                for row in rows
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
