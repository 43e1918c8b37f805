"""Index jobs on a cluster, and the processes in which their actors are."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, IndexReport
from indexer.distributed.jobs import index_in_partitions
from indexer.distributed.on_ray.builder import ray_builder
from indexer.distributed.places.folder import FolderPlace
from kalm_cache.settings import Settings
from tests.indexer.sharded import MANY
from tests.indexes import lines_of

SHARDS = 3


def index_on_ray(
    index: Path,
    settings: Settings,
    encoders: Encoders,
    texts: dict[str, str] = MANY,
    *,
    on_progress: Callable[[BuildCounts], None] = lambda counts: None,
    workers: int = 2,
) -> IndexReport:
    """An index of three shards, built by actors."""
    with ray_builder(None, encoders=workers) as builder:
        return index_in_partitions(
            *(lines_of(texts), FolderPlace(index), settings, encoders, builder),
            on_reject=print,
            on_progress=on_progress,
            shards=SHARDS,
        )


def encoder_processes() -> list[int]:
    """Of the actors on this machine that are alive."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any("ray::PartitionEncoder" in part for part in process.info["cmdline"] or ()):
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
