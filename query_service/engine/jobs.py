"""What waits for the engine's thread, the most urgent first, and which of it is computed next. Computes nothing.

Urgent is what came early or costs little: a job's place is its arrival plus its predicted cost, so that a short one
need not wait for a very long one before it, and none waits forever.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kalm_cache.scoring.batching import Batch, DistinctPairs
from kalm_cache.scoring.query_side import QuerySide


@dataclass(slots=True, eq=False)
class Job:
    """One thing to compute, whose result `future` gets: a function (`CallJob`) or margins (`DecodeJob`)."""

    future: Future[Any]
    arrived: float  # seconds
    due: float  # seconds: arrival plus predicted cost
    started: float | None = field(default=None, kw_only=True)


@dataclass(slots=True, eq=False)
class CallJob(Job):
    """A function to run between batches."""

    function: Callable[[], Any]


@dataclass(slots=True, eq=False)
class DecodeJob(Job):
    """Pairs to decode. `costs`: of each distinct pair, in units; `left`: places of those that no batch has taken."""

    side: QuerySide
    distinct: DistinctPairs
    costs: list[float]
    left: list[int]
    margins: dict[int, float] = field(default_factory=dict)  # by place

    @property
    def units_left(self) -> float:
        """The cost of what is left."""
        return sum(self.costs[place] for place in self.left)

    def fill(self, batch: Batch) -> list[int]:
        """Move pairs into a batch until one does not fit; returns their places."""
        count = 0
        while count < len(self.left) and batch.add(self.distinct.pairs[self.left[count]]):
            count += 1
        taken, self.left = self.left[:count], self.left[count:]
        return taken


@dataclass(frozen=True, slots=True)
class Share:
    """The pairs of one job in a batch, by their places."""

    job: DecodeJob
    places: list[int]


class JobQueue:
    """Jobs by urgency. Not thread-safe: its user locks. Jobs whose future was cancelled are dropped."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    def add(self, job: Job) -> None:
        """Put a job into its place."""
        bisect.insort(self._jobs, job, key=lambda queued: queued.due)

    def remove(self, job: Job) -> None:
        """Forget a job, if it is there."""
        self._jobs = [queued for queued in self._jobs if queued is not job]

    def jobs(self) -> Iterable[Job]:
        """Those that someone still waits for."""
        return (job for job in self._jobs if not job.future.cancelled())

    def next(self, batch_pairs: int) -> CallJob | list[Share] | None:
        """The most urgent call, or a batch of the most urgent pairs of one model; `None` if there is nothing to do."""
        self._jobs = list(self.jobs())
        if not self._jobs:
            return None
        first = self._jobs[0]
        if isinstance(first, DecodeJob):
            return self._fill_batch(first.side, batch_pairs)
        assert isinstance(first, CallJob)
        self._jobs.remove(first)
        return first

    def _fill_batch(self, side: QuerySide, batch_pairs: int) -> list[Share]:
        batch, shares = Batch(batch_pairs), []
        for job in self._jobs:
            if isinstance(job, DecodeJob) and job.side is side and not batch.full:
                shares.append(Share(job, job.fill(batch)))
        self._jobs = [job for job in self._jobs if not isinstance(job, DecodeJob) or job.left]
        return [share for share in shares if share.places]
