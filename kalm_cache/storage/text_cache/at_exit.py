"""What waits to be written when the interpreter ends is written then, within some seconds.

Knows of a cache only that it can be flushed.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from multiprocessing import util
from typing import Protocol

EXIT_SECONDS = 10.0  # a process that ends may not wait longer for its disk


class Flushed(Protocol):
    """Writes what waits, for `timeout` seconds at most."""

    def flush(self, timeout: float | None = None) -> bool:
        """False where it is not all written by then."""


class _AtExit:
    """The caches of this process that were put into; a forked child has its own."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._caches: weakref.WeakSet[Flushed] = weakref.WeakSet()

    def add(self, cache: Flushed) -> None:
        if self._process != os.getpid():
            self._process, self._caches = os.getpid(), weakref.WeakSet()
            atexit.register(self._flush)
            # children of multiprocessing end without atexit's callbacks; elsewhere it runs a second time, for nothing
            util.Finalize(None, self._flush, exitpriority=0)
        self._caches.add(cache)

    def _flush(self) -> None:
        until = time.monotonic() + EXIT_SECONDS
        for cache in list(self._caches) if self._process == os.getpid() else []:
            cache.flush(max(until - time.monotonic(), 0.0))


_AT_EXIT = _AtExit()


def write_at_exit(cache: Flushed) -> None:
    """Flush a cache when the interpreter ends, if it is there still; a second call does nothing."""
    _AT_EXIT.add(cache)
