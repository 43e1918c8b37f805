"""Several workers, each with a folder of its own, at the points of one sweep."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from tests.torture.client import Worker
from tests.torture.models import save_models

T = TypeVar("T")
IN_MEMORY = Path("/dev/shm")


class Pool:
    """Workers and the folder that they work in. See `open_pool`."""

    def __init__(self, folder: Path, workers: list[Worker]) -> None:
        self.folder = folder
        self.workers = workers

    def each(self, points: Iterable[T], check: Callable[[Worker, Path, T], None]) -> None:
        """Call `check` with a free worker and its folder, for every point."""
        free: SimpleQueue[tuple[Worker, Path]] = SimpleQueue()
        for ordinal, worker in enumerate(self.workers):
            free.put((worker, self.folder / f"worker-{ordinal}"))

        def run(point: T) -> None:
            worker, folder = free.get()
            try:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                check(worker, folder, point)
            finally:
                free.put((worker, folder))

        with ThreadPoolExecutor(len(self.workers)) as threads:
            for done in [threads.submit(run, point) for point in points]:
                done.result()


@contextmanager
def open_pool(workers: int) -> Iterator[Pool]:
    """Save the models, and start so many workers. Files are kept in memory where there is such a file system."""
    in_memory = IN_MEMORY if IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kalm-torture-", dir=in_memory) as name:
        folder = Path(name).resolve()
        save_models(folder / "models")
        with ThreadPoolExecutor(workers) as threads:
            logs = [folder / f"worker-{ordinal}.log" for ordinal in range(workers)]
            started = list(threads.map(lambda log: Worker(folder / "models", log), logs))
        try:
            yield Pool(folder, started)
        finally:
            for worker in started:
                worker.close()
