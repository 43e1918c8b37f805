"""One thread that computes for all requests: their pairs share the decoder's batches.

The next batch always takes the most urgent pairs. Urgent is what came early or costs little: a job is due at its
arrival plus its predicted cost, so that a short one need not wait for a very long one before it, and none waits
forever. Jobs whose future was cancelled, as the client left or the deadline passed, are dropped before they run.
Knows nothing of HTTP, indexes or generations.
"""

from __future__ import annotations

import bisect
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

from torch import Tensor

from kalm_cache.errors import DeviceLostError
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.batching import DistinctPairs, Pair, by_size, fill_batch
from kalm_cache.scoring.query_side import QuerySide
from query_service.engine.cost import WEIGHT_OF_THE_LATEST, CostModel

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


@dataclass(frozen=True, slots=True)
class Step:
    """A function to run between batches, and its tokens through the model, by which its time is predicted."""

    function: Callable[[], Any]
    tokens: int = 0


@dataclass(slots=True, eq=False)
class _Steps:
    """Functions to run between batches, one at a time; `left`: those not run yet; `answer`: of all their results."""

    future: Future[Any]
    due: float  # seconds: arrival plus predicted cost
    left: list[Step]
    answer: Callable[[list[Any]], Any]
    results: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Decode:
    """The pairs of a request. `costs`: of each distinct pair, in units; `left`: places of those no batch has taken."""

    future: Future[Any]
    due: float  # seconds: arrival plus predicted cost
    arrived: float
    side: QuerySide
    distinct: DistinctPairs
    costs: list[float]
    left: list[int]
    margins: dict[int, float] = field(default_factory=dict)  # by place
    started: float | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One pair of a batch: the job that it belongs to, and its place there."""

    job: _Decode
    place: int

    @property
    def pair(self) -> Pair:
        return self.job.distinct.pairs[self.place]


class Engine:
    """The thread and its queue. `start` it, `close` it.

    on_lost: called when the device is lost: nothing will be computed any more in this process.
    """

    def __init__(
        self,
        cost: CostModel,
        on_batch: OnBatch | None = None,
        *,
        batch_pairs: int | None = None,
        nice: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Decode at most `batch_pairs` pairs together; `cost` learns from every batch; `clock` gives seconds.

        `batch_pairs` `None`: as many as suit the device of the side that decodes. `nice`: by how much other threads
        come first, as of nice(1); it has no effect where the system knows no such thing of a thread.
        """
        self.cost, self._nice = cost, nice
        self._on_batch, self._batch_pairs, self._clock = on_batch, batch_pairs, clock
        self._jobs: list[_Steps | _Decode] = []  # the most urgent one first
        self._request_units = 0.0  # of one request, on average
        self._step_cost = CostModel()  # of a token in steps
        self.on_lost: Callable[[DeviceLostError], None] = lambda error: None
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
        """Run a function between batches: one that computes for a moment, but not with pairs."""
        future: Future[_T] = Future()
        self._put(_Steps(future, self._clock(), [Step(function)], itemgetter(0)))
        return future

    def run(self, steps: Sequence[Step]) -> Future[list[Any]]:
        """Run what computes for long (the encoder, a prefill) in steps; the results in their order.

        Other requests compute between two steps, those first that are due earlier; given up, no further step is run.
        """
        future: Future[list[Any]] = Future()
        if not steps:
            future.set_result([])
            return future
        due = self._clock() + sum(map(self._step_ms, steps)) / 1000
        self._put(_Steps(future, due, list(steps), list))
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
        mean = self._request_units or units
        self._request_units = mean + WEIGHT_OF_THE_LATEST * (units - mean)
        due = now + self.cost.ms(units) / 1000
        self._put(_Decode(future, due, now, side, distinct, costs, by_size(distinct.pairs)))
        return future

    @property
    def request_ms(self) -> float:
        """How long the pairs of one request take, on average."""
        return self.cost.ms(self._request_units)

    @property
    def depth(self) -> int:
        """Requests that wait or are being computed."""
        with self._changed:
            return sum(not job.future.cancelled() for job in self._jobs)

    @property
    def backlog_ms(self) -> float:
        """How long the pairs and the steps will take that wait, and are due before a request of average length."""
        with self._changed:
            due = self._clock() + self.request_ms / 1000
            waiting = [job for job in self._jobs if job.due <= due and not job.future.cancelled()]
            decodes = [job for job in waiting if isinstance(job, _Decode)]
            steps = [step for job in waiting if isinstance(job, _Steps) for step in job.left]
            pairs_ms = self.cost.ms(sum(job.costs[place] for job in decodes for place in job.left))
            return pairs_ms + sum(map(self._step_ms, steps))

    def tokens_within(self, ms: float) -> int:
        """How many tokens a step may have to end in so many milliseconds; 0 while nothing was measured."""
        of_one = self._step_ms(Step(lambda: None, tokens=1))
        return int(ms / of_one) if of_one else 0

    def _step_ms(self, step: Step) -> float:
        """As predicted; before the first step was measured, a token costs what one of a prompt does."""
        return self._step_cost.ms(step.tokens) or self.cost.ms(step.tokens)

    def _put(self, job: _Steps | _Decode) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._insert(job)
            self._changed.notify()

    def _insert(self, job: _Steps | _Decode) -> None:
        bisect.insort(self._jobs, job, key=lambda queued: queued.due)

    def _run(self) -> None:
        if (
            self._nice and sys.platform == "linux"
        ):  # there it is the thread's own, and of those that it starts for OpenMP
            os.nice(self._nice)
        while (work := self._next()) is not None:
            if isinstance(work, _Steps):
                self._step(work)
            else:
                self._decode(work)
            del work  # or the last request's states would stay in memory while nothing comes

    def _next(self) -> _Steps | list[_Entry] | None:
        """The most urgent call or batch; waits for one. `None` when the engine is closed and everything is computed."""
        with self._changed:
            while True:
                self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                if self._jobs:
                    return self._take()
                if self._closing:
                    return None
                self._changed.wait()

    def _take(self) -> _Steps | list[_Entry]:
        first = self._jobs[0]
        if isinstance(first, _Steps):
            self._jobs.remove(first)
            return first
        jobs = [job for job in self._jobs if isinstance(job, _Decode) and job.side is first.side]
        entries = [_Entry(job, place) for job in jobs for place in job.left]
        limit = self._batch_pairs or first.side.batch_pairs
        batch = [entries[i] for i in fill_batch((entry.pair for entry in entries), limit, first.side.batch_tokens)]
        for entry in batch:
            entry.job.left.remove(entry.place)
        self._jobs = [job for job in self._jobs if isinstance(job, _Steps) or job.left]
        return batch

    def _step(self, job: _Steps) -> None:
        step = job.left.pop(0)
        started = time.perf_counter()
        try:
            job.results.append(step.function())
        except BaseException as exc:
            self._fail(job, exc)
            return
        self._step_cost.learn(step.tokens, (time.perf_counter() - started) * 1000)
        if not job.left:
            _finish(job.future, job.answer(job.results))
        elif not job.future.cancelled():
            with self._changed:
                self._insert(job)

    def _decode(self, batch: list[_Entry]) -> None:
        jobs = list(dict.fromkeys(entry.job for entry in batch))
        for job in jobs:
            job.started = job.started or self._clock()
        if not self._is_decoded(batch, jobs):
            for job in jobs:  # one request's failure is not the others'
                self._decode([entry for entry in batch if entry.job is job])
            return
        for job in jobs:
            if len(job.margins) == len(job.distinct.pairs):
                self._answer(job)

    def _is_decoded(self, batch: list[_Entry], jobs: list[_Decode]) -> bool:
        """Whether the batch need not be tried again, one request at a time.

        Tried again outside of `except`: an error that is being handled keeps the batch's tensors alive.
        """
        try:
            self._decode_batch(batch)
        except BaseException as exc:
            if len(jobs) > 1 and not isinstance(exc, DeviceLostError):
                return False
            for job in jobs:
                self._fail(job, exc)
        return True

    def _decode_batch(self, batch: list[_Entry]) -> None:
        pairs = [entry.pair for entry in batch]
        started = time.perf_counter()
        margins = batch[0].job.side.decode(pairs)
        took_ms = (time.perf_counter() - started) * 1000
        self.cost.learn(sum(entry.job.costs[entry.place] for entry in batch), took_ms)
        if self._on_batch is not None:
            self._on_batch(pairs=len(pairs), tokens=sum(pair.tokens for pair in pairs))
        for entry, margin in zip(batch, margins, strict=True):
            entry.job.margins[entry.place] = margin

    def _answer(self, job: _Decode) -> None:
        started = job.started or job.arrived
        waited_ms, took_ms = (started - job.arrived) * 1000, (self._clock() - started) * 1000
        _finish(job.future, Decoded(job.distinct.spread(job.margins), waited_ms, took_ms))

    def _fail(self, job: _Steps | _Decode, why: BaseException) -> None:
        if isinstance(why, DeviceLostError):
            self.on_lost(why)
        with self._changed:
            self._jobs = [queued for queued in self._jobs if queued is not job]
        with suppress(InvalidStateError):  # cancelled meanwhile
            job.future.set_exception(why)


def _finish(future: Future[Any], result: Any) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        future.set_result(result)
