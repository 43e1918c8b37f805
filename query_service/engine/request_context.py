"""One request under way: what it leased, how long it has, and where its milliseconds went.

Reading happens on the reader threads, computing on the engine's, and the event loop only waits: a request that is
cancelled while it waits, as its client left or its time is up, costs nothing more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.cached_passages import LookUp, ReadPassages
from kalm_cache.settings import Settings
from query_service.engine.documents import DocumentEncoder
from query_service.engine.engine import Engine
from query_service.engine.live import Served
from query_service.middleware.tracing import Tracing

_T = TypeVar("_T")
_Timed = tuple[_T, float, float]  # a result, when it was begun and when it was there


class Places:
    """Bounds how many requests hold states at a time, as each holds megabytes from its look-up until it is decoded."""

    def __init__(self, count: int) -> None:
        """`count` requests; the others wait in the order of arrival."""
        self._free = asyncio.Semaphore(count)
        self.waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold a place for the length of the block."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


@dataclass(slots=True)
class Counts:
    """What a request used and had to do without, for the metrics."""

    hits: int = 0
    encoded: int = 0
    missing: int = 0
    damaged: int = 0
    read_bytes: int = 0
    queries_cut: int = 0
    documents_cut: int = 0

    def add_read(self, found: LookUp) -> None:
        """Stored passages were looked up."""
        self.hits += len(found.hits) + len(found.to_prefill)
        self.damaged += len(found.damaged)
        self.read_bytes += found.payload_bytes


@dataclass(slots=True)
class RequestContext:
    """What the answer to one request is made with. `timings_ms`: `queue`, then a name a stage, `total` at the end."""

    served: Served
    engine: Engine
    readers: Executor
    places: Places
    settings: Settings
    model: str
    tracing: Tracing | None = None
    started: float = field(default_factory=time.monotonic)
    timings_ms: dict[str, float] = field(default_factory=lambda: {"queue": 0.0})
    counts: Counts = field(default_factory=Counts)
    cut: list[int] = field(default_factory=list)  # positions of passages that were cut

    @property
    def index(self) -> PassageIndex:
        """The generation that this request began with."""
        return self.served.index

    @property
    def documents(self) -> DocumentEncoder | None:
        """The encoder of raw documents; `None` = off."""
        return self.served.documents

    @asynccontextmanager
    async def holding_states(self) -> AsyncIterator[None]:
        """Look up, and decode what was found, within this block; waiting for it counts as `queue`."""
        asked = time.monotonic()
        async with self.places.take():
            self._add("queue", (time.monotonic() - asked) * 1000)
            yield

    async def read(self, stage: str, function: Callable[[], _T]) -> _T:
        """Run what reads or searches on a reader thread; its time goes to `stage`, its waiting to `queue`."""
        return await self._timed(stage, function, self.readers.submit)

    async def compute(self, stage: str, function: Callable[[], _T]) -> _T:
        """Run what computes on the engine's thread, between batches; timed likewise."""
        return await self._timed(stage, function, self.engine.call)

    async def prepared(self, found: LookUp) -> ReadPassages:
        """What a look-up found, ready for the decoder: what the prefix cache lacks is computed first."""
        if not found.to_prefill:
            return self.index.prepare(found)
        return await self.compute("decode", lambda: self.index.prepare(found))

    async def margins(self, prompts: Sequence[Tokens], states: Sequence[Tensor | PrefixKV]) -> list[float]:
        """The margin of each pair, decoded in batches that are shared with other requests."""
        decoded = await asyncio.wrap_future(self.engine.decode(self.index.query_side, prompts, states))
        self._add("queue", decoded.queue_ms)
        self._add("decode", decoded.decode_ms)
        return decoded.margins

    def finished(self) -> dict[str, float]:
        """The timings, with `total`."""
        self.timings_ms["total"] = self.elapsed_ms
        return self.timings_ms

    @property
    def elapsed_ms(self) -> float:
        """Since the request began."""
        return (time.monotonic() - self.started) * 1000

    async def _timed(
        self, stage: str, function: Callable[[], _T], submit: Callable[[Callable[[], _Timed[_T]]], Future[_Timed[_T]]]
    ) -> _T:
        asked = time.monotonic()

        def task() -> _Timed[_T]:
            began = time.monotonic()
            result = function()
            return result, began, time.monotonic()

        result, began, ended = await asyncio.wrap_future(submit(task))
        self._add("queue", (began - asked) * 1000)
        self._add(stage, (ended - began) * 1000)
        return result

    def _add(self, stage: str, ms: float) -> None:
        if self.tracing is not None and stage != "queue":
            self.tracing.stage(stage, time.perf_counter() - ms / 1000, ms / 1000)
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + ms
