"""Files on disk → when to look at them again. Knows nothing of what is in them, or of an index."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kalm_cache.errors import CorpusError, StoreError
from kalm_cache.process.stopping import stop_if_asked

logger = logging.getLogger(__name__)
TICK_MS = 500  # how long one wait takes
RETRY_SECONDS = 10.0
LONGEST_MS = 30_000  # of a batch of changes that never settles


def follow(
    source: Path,
    update: Callable[[], None],
    *,
    settle_seconds: float = 1.0,
    stop: threading.Event | None = None,
) -> None:
    """Call `update` now, and again whenever files have changed: once a batch, until the process is stopped.

    What fails for a while, as a file that is being replaced or an index that another job changes, is logged and tried
    again after 10 s, or at the next change.

    Args:
        source: a file, or a folder with all that is in it.
        update: takes over what the files say now.
        settle_seconds: a batch ends when no file has changed for so long, or after 30 s.
        stop: ends it when set.

    Raises:
        KalmCacheError: what `update` raises and waiting does not mend.
    """
    from watchfiles import watch

    source, is_folder, due = source.resolve(), source.is_dir(), time.monotonic()

    def counts(_: object, name: str) -> bool:
        path = Path(name)
        return not _is_hidden(path.relative_to(source)) if is_folder else path == source

    try:
        for changes in watch(
            source if is_folder else source.parent,  # a file that is replaced is another one, of the same name
            watch_filter=counts,
            recursive=is_folder,
            step=round(1000 * settle_seconds),
            debounce=LONGEST_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=stop,
        ):
            if changes or due <= time.monotonic():
                due = float("inf") if _updated(update) else time.monotonic() + RETRY_SECONDS
    except KeyboardInterrupt:
        stop_if_asked()  # says by which signal
        raise


def _updated(update: Callable[[], None]) -> bool:
    try:
        update()
    except (CorpusError, StoreError) as exc:
        logger.warning("not updated, tried again in %.0f s or at the next change: %s", RETRY_SECONDS, exc)
        return False
    return True


def _is_hidden(within: Path) -> bool:
    """Whether a change in the folder is of a file that no corpus has, as those of git and of editors."""
    return any(part.startswith(".") for part in within.parts)
