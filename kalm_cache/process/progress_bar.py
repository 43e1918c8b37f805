"""A bar on the terminal for work that takes long. Knows nothing of the work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

SHOWN_AFTER_SECONDS = 3.0
Advance = Callable[[int], None]


@contextmanager
def progress_bar(what: str, total: int, show: bool | None) -> Iterator[Advance]:
    """Yield a function that counts what is done.

    Args:
        what: stands before the bar.
        total: of what is counted.
        show: `None`: on a terminal, once the work has taken 3 seconds; true: at once, on a terminal or not.
    """
    if show is False or (show is None and not sys.stderr.isatty()):
        yield _count_nothing
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=not show)
    task, start_at = bar.add_task(what, total=total), monotonic() + (0.0 if show else SHOWN_AFTER_SECONDS)

    def advance(count: int) -> None:
        bar.advance(task, count)
        if monotonic() >= start_at:
            bar.start()  # a second time, nothing

    advance(0)
    try:
        yield advance
    finally:
        bar.stop()


def _count_nothing(count: int) -> None:
    pass
