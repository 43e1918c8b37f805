"""Admission control: what bounds memory, and waiting, under overload.

Three bounds, all here:

- The queue bound, `Admission.enter`: at most `queue_limit` requests are under way. One more gets 429, and so does one
  that could not be answered before its deadline. A request under way costs its body and some kilobytes.
- The state-holding bound, `Admission.holding_states`: of these, at most `STATE_HOLDERS` hold passages' states, which
  are megabytes a request, from the look-up until they are decoded. The others wait in the order of arrival.

- The encoding bound, `Admission.encoding`: at most `ENCODING` of these encode raw documents, so that those of stored
  passages always find room among the state holders, and reader threads.

So memory under overload is at most `queue_limit` bodies and `STATE_HOLDERS` requests' states, beside the weights and
the prefix cache, which `prefix_cache_gib` bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager

from query_service.answering.errors import BusyError
from query_service.engine.engine import Engine

ENCODING = 4  # requests
STATE_HOLDERS = 16  # requests; enough that short ones fill a batch together


class Admission:
    """Counts the requests under way, and those that wait to hold states. Used on the event loop alone."""

    def __init__(self, queue_limit: int, engine: Engine, state_holders: int = STATE_HOLDERS) -> None:
        """`engine` predicts how long the pairs that it knows of will take."""
        self._queue_limit, self._engine = queue_limit, engine
        self._state_slots = asyncio.Semaphore(state_holders)
        self._encoding_slots = asyncio.Semaphore(ENCODING)
        self.under_way = 0
        self.waiting = 0  # for a slot: the engine does not know these yet

    @contextmanager
    def enter(self, timeout_ms: float) -> Iterator[None]:
        """Count a request for the length of the block.

        Raises:
            BusyError: as many as may be are under way, or those before it already take longer than `timeout_ms`.
        """
        wait_ms = self._engine.backlog_ms + self.waiting * self._engine.request_ms
        if self.under_way >= self._queue_limit or wait_ms > timeout_ms:
            raise BusyError(self.under_way, wait_ms)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def encoding(self) -> AbstractAsyncContextManager[None]:
        """Encode raw documents for the length of the block, once fewer than `ENCODING` requests do."""
        return self._holding(self._encoding_slots)

    def holding_states(self) -> AbstractAsyncContextManager[None]:
        """Hold states for the length of the block, once fewer than `state_holders` requests do."""
        return self._holding(self._state_slots)

    @asynccontextmanager
    async def _holding(self, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await slots.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            slots.release()
