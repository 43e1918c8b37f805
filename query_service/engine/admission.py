"""Who may come in: a bounded number of requests, and none that could not be answered in time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from kalm_cache.errors import KalmCacheError
from query_service.engine.engine import Engine
from query_service.engine.request_context import Places


class BusyError(KalmCacheError):
    """Too much is under way; come again in `retry_after_seconds`."""

    def __init__(self, under_way: int, wait_ms: float) -> None:
        self.retry_after_seconds = max(1, math.ceil(wait_ms / 1000))
        super().__init__(
            f"{under_way} requests are under way, and those before this one take another {wait_ms:.0f} ms; "
            f"try again in {self.retry_after_seconds} s"
        )


class Admission:
    """Counts the requests under way; used on the event loop alone."""

    def __init__(self, limit: int, engine: Engine, places: Places) -> None:
        """Let in `limit` requests at a time; `places`: where those wait that the engine does not know yet."""
        self._limit, self._engine, self._places = limit, engine, places
        self.under_way = 0

    @contextmanager
    def enter(self, timeout_ms: float) -> Iterator[None]:
        """Count a request for the length of the block.

        Raises:
            BusyError: there is no room, or what waits already takes longer than `timeout_ms`.
        """
        wait_ms = self._engine.backlog_ms + self._places.waiting * self._engine.request_ms
        if self.under_way >= self._limit or wait_ms > timeout_ms:
            raise BusyError(self.under_way, wait_ms)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
