"""One request under way: the generation that it leased, its counts, and where its milliseconds went.

Reading happens on the reader threads, computing on the engine's, and the event loop only waits: a request that is
cancelled while it waits, as its client left or its time is up, costs nothing more.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import PromptTokens, Tokens
from kalm_cache.scoring.cached_passages import CachedPassages, LookUp, ReadyPassages
from kalm_cache.scoring.query_side import QuerySide
from query_service.answering.notes import AnswerNotes
from query_service.engine.admission import Admission
from query_service.engine.documents import DocumentEncoder
from query_service.engine.engine import Engine, Step
from query_service.engine.live import Served
from query_service.engine.served import ServedModel
from query_service.engine.texts.flights import Flights
from query_service.middleware.tracing import Tracing

_T = TypeVar("_T")
_Timed = tuple[_T, float, float]  # a result, and the seconds at which its step began and ended


@dataclass(slots=True)
class RequestContext(AnswerNotes):
    """What the answer to one request is made with; it drives the steps of a rerank (`scoring.pipeline.Driver`).

    flights: texts that requests look up or encode now.
    encoding_engine: what texts are encoded on.
    bound: the filter that the request's key is bound to: `served` is what it sees. `None` = everything.
    """

    served: Served
    engine: Engine
    encoding_engine: Engine
    readers: Executor
    admission: Admission
    flights: Flights
    tracing: Tracing | None = None
    bound: Mapping[str, Any] | None = None

    @property
    def index(self) -> PassageIndex:
        """The generation that this request began with. Raises `NoIndexError` where the service has no index."""
        return self.served.require_index()

    @property
    def model(self) -> ServedModel:
        """What scores, and how it takes a text."""
        return self.served.model

    @property
    def documents(self) -> DocumentEncoder | None:
        """The encoder of raw documents; `None` = off."""
        return self.served.documents

    @asynccontextmanager
    async def holding_states(self) -> AsyncIterator[None]:
        """Look up and decode within this block; waiting to enter it counts as `queue`."""
        asked = time.monotonic()
        async with self.admission.holding_states():
            self._add("queue", (time.monotonic() - asked) * 1000)
            yield

    @asynccontextmanager
    async def encoding(self) -> AsyncIterator[None]:
        """Tokenise and encode raw documents within this block; waiting to enter it counts as `queue`."""
        asked = time.monotonic()
        async with self.admission.encoding():
            self._add("queue", (time.monotonic() - asked) * 1000)
            yield

    async def read(self, stage: str, step: Callable[[], _T]) -> _T:
        """Run what reads or searches on a reader thread; its time goes to `stage`, its waiting to `queue`."""
        return await self._timed(stage, step, self.readers.submit)

    async def compute(self, stage: str, step: Callable[[], _T]) -> _T:
        """Run what computes on the engine's thread, between batches; timed likewise."""
        return await self._timed(stage, step, self.engine.call)

    async def encode(self, steps: Sequence[Step]) -> None:
        """Run steps of the encoder, with other requests' work between them."""
        await self._compute_all("encode", steps, self.encoding_engine)

    async def _compute_all(self, stage: str, steps: Sequence[Step], engine: Engine) -> list[Any]:
        """As `compute`, one step after the other, with other requests' work between them; the results in order."""
        asked = time.monotonic()
        timed = [replace(step, function=partial(_timed, step.function)) for step in steps]
        results = await asyncio.wrap_future(engine.run(timed))
        took = sum(ended - began for _, began, ended in results)
        self._add("queue", (time.monotonic() - asked - took) * 1000)
        self._add(stage, took * 1000)
        return [result for result, _, _ in results]

    async def prepare(self, stored: CachedPassages, lookup: LookUp) -> ReadyPassages:
        """The passages of a look-up, ready for the decoder: what the prefix cache lacks is computed first."""
        found = len(lookup.hits) + len(lookup.to_prefill)
        self.counts.found(found, damaged=len(lookup.damaged), read_bytes=lookup.payload_bytes)
        parts = [
            replace(lookup, ids=list(some), hits={}, to_prefill=some)
            for some in _in_parts(lookup.to_prefill, stored.query_side.batch_pairs)
        ]
        steps = [Step(partial(stored.prepare, part), len(part.ids) * len(part.prefix)) for part in parts]
        hits = dict(lookup.hits)
        for part, ready in zip(parts, await self._compute_all("decode", steps, self.engine), strict=True):
            hits |= zip(part.ids, ready.passages, strict=True)
        return stored.prepare(replace(lookup, hits=hits, to_prefill={}))

    async def share(
        self, stored: CachedPassages, prompts: Sequence[PromptTokens], chunk_size: int
    ) -> list[PromptTokens]:
        """The prompts with the prefix that all passages share; an instruction's first one waits for it."""
        if stored.can_share(prompts, chunk_size):
            return stored.share(prompts, chunk_size)
        return await self.compute("decode", lambda: stored.share(prompts, chunk_size))

    async def margins(
        self, side: QuerySide, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV]
    ) -> list[float]:
        """The margin of each pair, decoded in batches that are shared with other requests."""
        decoded = await asyncio.wrap_future(self.engine.decode(side, prompts, passages))
        self._add("queue", decoded.queue_ms)
        self._add("decode", decoded.decode_ms)
        return decoded.margins

    async def _timed(
        self, stage: str, step: Callable[[], _T], submit: Callable[[Callable[[], _Timed[_T]]], Future[_Timed[_T]]]
    ) -> _T:
        asked = time.monotonic()

        result, began, ended = await asyncio.wrap_future(submit(partial(_timed, step)))
        self._add("queue", (began - asked) * 1000)
        self._add(stage, (ended - began) * 1000)
        return result

    def _add(self, stage: str, ms: float) -> None:
        if self.tracing is not None and stage != "queue":
            self.tracing.stage(stage, time.perf_counter() - ms / 1000, ms / 1000)
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + ms


def _timed(step: Callable[[], _T]) -> _Timed[_T]:
    began = time.monotonic()
    result = step()
    return result, began, time.monotonic()


def _in_parts(passages: Mapping[str, _T], size: int) -> Iterator[dict[str, _T]]:
    items = iter(passages.items())
    while part := dict(itertools.islice(items, size)):
        yield part
