"""Progress of an index job: a bar on a terminal, a log line now and then elsewhere."""

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

from kalm_cache.process.stopping import stop_if_asked

if TYPE_CHECKING:
    from indexer.build.counts import BuildCounts

LOG_EVERY_SECONDS = 5.0
logger = logging.getLogger(__name__)


@contextmanager
def show_progress(total: int | None) -> Iterator[Callable[[BuildCounts], None]]:
    """Yield the callback that the job gives its counts to. `total`: lines of the corpus, `None` if unknown."""
    rates = _Rates(total)
    if not sys.stderr.isatty():
        yield _stoppable(rates.log)
        logger.info(rates.line())
        return
    columns = (
        TextColumn("encoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task("encoding", total=total, rates="")

        def update(progress: BuildCounts) -> None:
            rates.take(progress)
            bar.update(task, completed=rates.handled, rates=rates.speed())

        yield _stoppable(update)


def _stoppable(show: Callable[[BuildCounts], None]) -> Callable[[BuildCounts], None]:
    """Called after each batch, which is stored then: the place to stop at."""

    def show_or_stop(progress: BuildCounts) -> None:
        show(progress)
        stop_if_asked()

    return show_or_stop


class _Rates:
    """Passages/s and tokens/s since the start, and the time left at this speed."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.handled = self.encoded = self.tokens = self.stored_before = 0
        self._started = self._logged = time.monotonic()

    def take(self, progress: BuildCounts) -> None:
        self.handled = progress.done + progress.rejected
        self.encoded, self.tokens = progress.encoded, progress.tokens
        self.stored_before = progress.resumed + progress.copied

    def log(self, progress: BuildCounts) -> None:
        self.take(progress)
        if time.monotonic() - self._logged >= LOG_EVERY_SECONDS:
            self._logged = time.monotonic()
            logger.info(self.line())

    def speed(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self.encoded / seconds:,.0f} passages/s {self.tokens / seconds:,.0f} tokens/s"

    def line(self) -> str:
        of_total = "" if self.total is None else f" of {self.total:,}"
        stored = f" ({self.stored_before:,} already stored)" if self.stored_before else ""
        return f"{self.handled:,}{of_total} passages{stored}, {self.speed()}{self._eta()}"

    def _eta(self) -> str:
        if self.total is None or not self.encoded:
            return ""
        seconds_each = (time.monotonic() - self._started) / self.encoded
        return f", ETA {max(self.total - self.handled, 0) * seconds_each:,.0f} s"
