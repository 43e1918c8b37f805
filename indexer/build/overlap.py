"""Batches are planned, computed and committed side by side: while one is encoded, the next is read and tokenised, and
the one before it is compressed, embedded and written.

The caller's thread plans and commits: it alone touches files, reports progress, and is stopped by signals. Encoders
have a thread each, and take from one queue; one more thread finishes what they made. Batches come back in the order in
which they were planned, whichever was ready first: what is stored is what one thread would have stored.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from queue import LifoQueue

import torch
from torch import Tensor

from indexer.build.compute import ComputedBatch, encode, finish
from indexer.build.plan import Batch, EncodeBatch
from indexer.models import BuildModels, LoadSide
from kalm_cache.scoring.passage_side import PassageSide

WAITING = 2  # batches beside those that are encoded now: one to be encoded next, and one that is finished or written


def batches_in_flight(models: BuildModels) -> int:
    """How many batches are planned and not committed, at most: what a killed build may have to encode again."""
    return _devices(models) + WAITING


def _devices(models: BuildModels) -> int:
    return len(models.passage_sides) + len(models.on_other_devices)


def computed_in_order(
    batches: Iterator[Batch], models: BuildModels, seconds: dict[str, float]
) -> Generator[ComputedBatch, None, None]:
    """Every batch, computed, in order. Closed, it drops what is not begun, and waits for what is: no thread is left.

    Where planning fails, all that was planned before comes first. Errors of any stage keep their traceback.

    Args:
        batches: planned as they are asked for, in the thread that asks for the results.
        models: what to compute with; all devices encode at the same time, each from its first batch on.
        seconds: of each stage, added up there.
    """
    planned, flying = _Planned(batches, seconds), deque[Future[ComputedBatch]]()
    with _Stages(models) as stages:
        while True:
            while len(flying) < batches_in_flight(models) and (batch := planned.next()) is not None:
                flying.append(stages.submit(batch))
            if not flying:
                break
            computed = flying.popleft().result()
            for stage, spent in computed.seconds.items():
                seconds[stage] += spent
            yield computed
    planned.require_complete()


class _Planned:
    """The planner's batches, until there are none or one cannot be planned; that error is kept for the end."""

    def __init__(self, batches: Iterator[Batch], seconds: dict[str, float]) -> None:
        self._batches, self._seconds, self._is_over = batches, seconds, False
        self._error: Exception | None = None

    def next(self) -> Batch | None:
        started = time.perf_counter()
        try:
            batch = None if self._is_over else next(self._batches, None)
        except Exception as exc:
            batch, self._error = None, exc
        self._is_over = batch is None
        self._seconds["plan"] += time.perf_counter() - started
        return batch

    def require_complete(self) -> None:
        if self._error is not None:
            raise self._error


class _Stages:
    """The threads: one an encoder, and one for what comes after. They start with the first batch that needs them."""

    def __init__(self, models: BuildModels) -> None:
        self._models = models
        # last in, first out: a device whose encoder is not loaded yet is taken when all others are at work
        self._free: LifoQueue[LoadSide] = LifoQueue()
        for load in models.on_other_devices[::-1]:
            self._free.put(load)
        for side in models.passage_sides[::-1]:
            self._free.put(partial(_same, side))
        self._encoders = ThreadPoolExecutor(max(1, _devices(models)), "encode")
        self._finisher = ThreadPoolExecutor(1, "finish")

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._encoders, self._finisher):  # in this order: who finishes waits for an encoder
            pool.shutdown(cancel_futures=True)

    def submit(self, batch: Batch) -> Future[ComputedBatch]:
        """Begin a batch, behind those that were begun before."""
        states = self._encoders.submit(self._encode, batch) if isinstance(batch, EncodeBatch) else None
        return self._finisher.submit(self._finish, batch, states)

    def _encode(self, batch: EncodeBatch) -> tuple[list[Tensor], float]:
        load = self._free.get()
        try:
            side = load()
            started = time.perf_counter()
            with _on(side.device):
                return encode(batch, side), time.perf_counter() - started
        finally:
            self._free.put(load)

    def _finish(self, batch: Batch, encoded: Future[tuple[list[Tensor], float]] | None) -> ComputedBatch:
        states, seconds = ([], 0.0) if encoded is None else encoded.result()
        return finish(batch, states, self._models, seconds)


def _same(side: PassageSide) -> PassageSide:
    return side


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Kernels of a thread run on its current device, which is the first one unless it is told."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
