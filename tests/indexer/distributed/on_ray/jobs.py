"""Index jobs on a cluster, and the processes in which their actors are."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, IndexReport
from indexer.distributed.jobs import index_in_partitions
from indexer.distributed.on_ray.builder import ray_builder
from indexer.distributed.on_ray.encoder import PartitionEncoder
from indexer.distributed.places.folder import FolderPlace
from indexer.distributed.receipt import Receipt
from kalm_cache.settings import Settings
from tests.indexer.sharded import MANY
from tests.indexes import lines_of

SHARDS = 3
ENCODER = re.compile(r"ray::(Partition|Telling|Stalling)Encoder")


def index_on_ray(
    index: Path,
    settings: Settings,
    encoders: Encoders,
    texts: dict[str, str] = MANY,
    *,
    on_progress: Callable[[BuildCounts], None] = lambda counts: None,
    workers: int = 2,
    **options: Any,
) -> IndexReport:
    """An index of three shards, built by actors; options are those of `ray_builder`."""
    with ray_builder(None, encoders=workers, **options) as builder:
        return index_in_partitions(
            *(lines_of(texts), FolderPlace(index), settings, encoders, builder),
            on_reject=print,
            on_progress=on_progress,
            shards=SHARDS,
        )


class TellingEncoder(PartitionEncoder):
    """Warns of what it has."""

    def build(self, partition: int) -> Receipt:
        import ray

        logging.getLogger("indexer.anything").warning("GPUs %s, below %s", ray.get_gpu_ids(), self._scratch)
        return super().build(partition)


class StallingEncoder(PartitionEncoder):
    """Stores a batch, and no more."""

    def _take(self, counts: BuildCounts) -> None:
        super()._take(counts)
        if counts.done:
            time.sleep(3600)


def encoder_processes() -> list[int]:
    """Of the actors on this machine that are alive."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any(ENCODER.search(part) for part in process.info["cmdline"] or ()):
                found.append(process.pid)
    return found


@contextmanager
def killing(chance: random.Random, within_seconds: float, kill: Callable[[], None]) -> Iterator[None]:
    """Call `kill` once, at a random moment while this lasts."""
    over = threading.Event()

    def wait_and_kill() -> None:
        if not over.wait(chance.uniform(0, within_seconds)):
            kill()

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
