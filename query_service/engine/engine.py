"""One thread that computes for all requests: their pairs share the decoder's batches.

The next batch always takes the most urgent pairs (`jobs.py` says which). Work whose future was cancelled, as its client
left or its deadline passed, is dropped before it runs. Knows nothing of HTTP, indexes or generations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.batching import DECODE_BATCH, DistinctPairs, by_size
from kalm_cache.scoring.query_side import QuerySide
from query_service.engine.cost import WEIGHT_OF_THE_LATEST, CostModel
from query_service.engine.jobs import CallJob, DecodeJob, Job, JobQueue, Share

_T = TypeVar("_T")


class OnBatch(Protocol):
    """Called after every batch that was decoded."""

    def __call__(self, *, pairs: int, tokens: int) -> None:
        """`tokens`: prompt tokens and pooled states."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Margins in the order of the pairs; how long they waited for their first batch, and then took."""

    margins: list[float]
    queue_ms: float
    decode_ms: float


class Engine:
    """The thread and its queue. `start` it, `close` it."""

    def __init__(
        self,
        cost: CostModel,
        on_batch: OnBatch | None = None,
        *,
        batch_pairs: int = DECODE_BATCH,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decode at most `batch_pairs` pairs together; `cost` learns from every batch; `clock` gives seconds."""
        self.cost = cost
        self._on_batch, self._batch_pairs, self._clock = on_batch, batch_pairs, clock
        self._queue = JobQueue()
        self._request_units = 0.0  # of one request, on average
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="kalm-cache-engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Finish what was asked for, then end. Calls after that raise `RuntimeError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function between batches: one that computes, but not with pairs (the encoder, a prefill)."""
        future: Future[_T] = Future()
        now = self._clock()
        self._put(CallJob(future, now, now, function))
        return future

    def decode(
        self, side: QuerySide, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV]
    ) -> Future[Decoded]:
        """The margin of each pair, as `QuerySide.margins` takes them. Pairs of the very same objects tie."""
        future: Future[Decoded] = Future()
        distinct = DistinctPairs.of(prompts, passages)
        if not distinct.pairs:
            future.set_result(Decoded([], 0.0, 0.0))
            return future
        costs = self.cost.units(side, distinct.pairs)
        units, now = sum(costs), self._clock()
        self._request_units += WEIGHT_OF_THE_LATEST * (units - self._request_units)
        due = now + self.cost.ms(units) / 1000
        self._put(DecodeJob(future, now, due, side, distinct, costs, by_size(distinct.pairs)))
        return future

    @property
    def request_ms(self) -> float:
        """How long the pairs of one request take, on average."""
        return self.cost.ms(self._request_units)

    @property
    def depth(self) -> int:
        """Requests that wait or are being computed."""
        with self._changed:
            return sum(1 for _ in self._queue.jobs())

    @property
    def backlog_ms(self) -> float:
        """How long the pairs that wait will take, as predicted."""
        with self._changed:
            return self.cost.ms(sum(job.units_left for job in self._queue.jobs() if isinstance(job, DecodeJob)))

    def _put(self, job: Job) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._queue.add(job)
            self._changed.notify()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            if isinstance(work, CallJob):
                self._call(work)
            else:
                self._decode(work)
            del work  # or the last request's states would stay in memory while nothing comes

    def _next(self) -> CallJob | list[Share] | None:
        """What to compute now; waits for it. `None` when the engine is closed and has computed everything."""
        with self._changed:
            while (work := self._queue.next(self._batch_pairs)) is None and not self._closing:
                self._changed.wait()
            return work

    def _call(self, job: CallJob) -> None:
        try:
            _finish(job.future, job.function())
        except BaseException as exc:
            self._fail(job, exc)

    def _decode(self, shares: list[Share]) -> None:
        started = self._clock()
        for share in shares:
            share.job.started = share.job.started or started
        try:
            self._decode_batch(shares)
        except BaseException as exc:
            if len(shares) == 1:
                self._fail(shares[0].job, exc)
                return
            for share in shares:  # one request's failure is not the others'
                self._decode([share])

    def _decode_batch(self, shares: list[Share]) -> None:
        pairs = [share.job.distinct.pairs[place] for share in shares for place in share.places]
        started = time.perf_counter()
        margins = iter(shares[0].job.side.decode(pairs))
        took_ms = (time.perf_counter() - started) * 1000
        self.cost.learn(sum(share.job.costs[place] for share in shares for place in share.places), took_ms)
        if self._on_batch is not None:
            self._on_batch(pairs=len(pairs), tokens=sum(pair.tokens for pair in pairs))
        for share in shares:
            share.job.margins.update(zip(share.places, margins, strict=False))
            if len(share.job.margins) == len(share.job.distinct.pairs):
                self._answer(share.job)

    def _answer(self, job: DecodeJob) -> None:
        started = job.started or job.arrived
        waited_ms, took_ms = (started - job.arrived) * 1000, (self._clock() - started) * 1000
        _finish(job.future, Decoded(job.distinct.spread(job.margins), waited_ms, took_ms))

    def _fail(self, job: Job, why: BaseException) -> None:
        with self._changed:
            self._queue.remove(job)
        with suppress(InvalidStateError):  # cancelled meanwhile
            job.future.set_exception(why)


def _finish(future: Future[Any], result: Any) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        future.set_result(result)
