"""Passages a second with one and with two encoders on Ray, one thread each, and the efficiency of the second.

    python -m benchmarks.scale_out.build [--passages 4000] [--encoders 1,2] [--shards 4]

The bundled model encodes the bundled passages, some of them several times under other ids, into shards of a folder.
Each number of encoders runs in a process of its own, with a Ray of its own that has as many CPUs. Counted is the time
from the first stored batch to the last receipt; loading the models, planning and committing are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import emit, machine, markdown
from indexer.build.counts import BuildCounts
from indexer.corpus import CorpusLine, read_corpus
from indexer.distributed.jobs import plan_at
from indexer.distributed.on_ray.builder import ray_builder
from indexer.distributed.places.folder import FolderPlace
from indexer.models import load_encoders
from kalm_cache.passage import Passage
from kalm_cache.settings import load_settings

CORPUS = Path(__file__).parents[2] / "kalm_cache/bundled/demo/corpus.jsonl.zst"


def passages(count: int) -> list[CorpusLine]:
    """The bundled ones, over and over, under ids of their own."""
    bundled = [line for line in read_corpus(CORPUS) if isinstance(line, CorpusLine)]
    texts = islice(cycle(line.passage.text for line in bundled), count)
    return [CorpusLine(Passage(f"p{place}", text), f"made:{place}") for place, text in enumerate(texts)]


def measure(encoders: int, shards: int, count: int) -> dict[str, Any]:
    """Build once with so many encoders, in this process."""
    import ray

    times: list[tuple[float, int]] = []

    def watch(counts: BuildCounts) -> None:
        if counts.encoded:
            times.append((time.perf_counter(), counts.encoded))

    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # the encoders are what is measured
    ray.init("local", num_cpus=encoders, include_dashboard=False, log_to_driver=False)
    settings = load_settings(model="tiny", device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        place = FolderPlace(Path(folder) / "index")
        watching = {"on_reject": lambda line: None, "on_progress": lambda counts: None}
        plan_at(place, passages(count), settings, load_encoders(settings), shards=shards, **watching)
        with ray_builder(None, encoders=encoders) as builder:
            builder.build(place, shards, settings, watch)
    ray.shutdown()
    (start, first), (end, last) = times[0], times[-1]
    assert last == count
    return {
        "encoders": encoders,
        "passages": last - first,
        "seconds": end - start,
        "rate": (last - first) / (end - start),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure each number of encoders in a process of its own, or one in this."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=4000)
    parser.add_argument("--encoders", default="1,2", help="how many, one after the other: %(default)s")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        emit(measure(int(given.encoders), given.shards, given.passages))
        return 0
    rows = []
    for encoders in given.encoders.split(","):
        size = ["--passages", str(given.passages), "--shards", str(given.shards)]
        command = [sys.executable, "-m", "benchmarks.scale_out.build", "--one", "--encoders", encoders, *size]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        emit(rows[-1])
    emit({"machine": machine(torch.device("cpu"))})
    first = rows[0]["rate"] / rows[0]["encoders"]
    print(
        markdown(
            ["encoders", "passages/s", "efficiency"],
            [[row["encoders"], f"{row['rate']:,.1f}", f"{row['rate'] / row['encoders'] / first:.0%}"] for row in rows],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
