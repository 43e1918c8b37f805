"""Progress of training: a bar with loss and held-out nDCG on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from kalm_cache.finetuning.training.trainer import Progress

LOG_EVERY_SECONDS = 15.0
logger = logging.getLogger(__name__)


@contextmanager
def show_training() -> Iterator[Callable[[Progress], None]]:
    """Yield the callback that the trainer gives its progress to."""
    if not sys.stderr.isatty():
        yield _Logged().log
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task("training", total=None, state="")

    def update(progress: Progress) -> None:
        bar.update(task, completed=progress.step, total=progress.planned, state=_state(progress))
        bar.start()  # a second time, nothing: before the first step, other bars are shown

    try:
        yield update
    finally:
        bar.stop()


class _Logged:
    def __init__(self) -> None:
        self._logged = -LOG_EVERY_SECONDS

    def log(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_SECONDS or progress.step == progress.planned:
            self._logged = now
            logger.info("step %d of %d: %s", progress.step, progress.planned, _state(progress))


def _state(progress: Progress) -> str:
    return f"loss {progress.loss:.3f}, held-out nDCG@10 {progress.ndcg:.4f}"
