"""One thread that computes for all clients: pairs of every request share the decoder's batches.

The next batch always takes the most urgent pairs. Urgent is who came early or wants little: a request's place is its
arrival plus what it is predicted to cost, so that a short one need not wait for a very long one before it, and none
waits forever. Work whose future was cancelled, as its client left or its deadline passed, is dropped before it runs.
Knows nothing of HTTP, indexes or generations.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.query_side import BATCH_TOKENS, DECODE_BATCH, QuerySide
from query_service.engine.cost import WEIGHT_OF_THE_LATEST, CostModel

_T = TypeVar("_T")
logger = logging.getLogger(__name__)


class OnBatch(Protocol):
    """Is told of every batch that was decoded."""

    def __call__(self, *, pairs: int, tokens: int) -> None:
        """`tokens`: prompt tokens and pooled states."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Margins in the order of the pairs; how long they waited for their first batch, and then took."""

    margins: list[float]
    queue_ms: float
    decode_ms: float


@dataclass(slots=True, eq=False)
class _Item:
    """What one request asked for: a call, or pairs, of which `left` (positions) are still to be decoded."""

    key: float
    future: Future[Any]
    arrived: float
    call: Callable[[], Any] | None = None
    side: QuerySide | None = None
    prompts: Sequence[Tokens] = ()
    states: Sequence[Tensor | PrefixKV] = ()
    left: list[int] = field(default_factory=list)
    margins: dict[int, float] = field(default_factory=dict)
    sizes: list[float] = field(default_factory=list)  # predicted cost of each pair, in units
    units_left: float = 0.0
    started: float | None = None


class Engine:
    """The thread and its queue. `start` it, `close` it."""

    def __init__(self, cost: CostModel, on_batch: OnBatch | None = None, *, batch_pairs: int = DECODE_BATCH) -> None:
        """Decode at most `batch_pairs` pairs together; `cost` learns from every batch."""
        self.cost = cost
        self._on_batch, self._batch_pairs = on_batch, batch_pairs
        self._items: list[_Item] = []  # the most urgent one first
        self._request_units = 0.0  # of one request, on average
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="kalm-cache-engine", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Finish what was asked for, then end. Who asks after that gets a `RuntimeError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function between batches: one that computes, but not with pairs (the encoder, a prefill)."""
        future: Future[_T] = Future()
        self._put(_Item(time.monotonic(), future, time.monotonic(), call=function))
        return future

    def decode(
        self, side: QuerySide, prompts: Sequence[Tokens], states: Sequence[Tensor | PrefixKV]
    ) -> Future[Decoded]:
        """The margin of each (prompt, states) pair. Pairs of the very same objects are decoded once, and so tie."""
        future: Future[Decoded] = Future()
        now = time.monotonic()
        sizes = self.cost.units(side, prompts, states)
        distinct = {(id(prompt), id(one)): i for i, (prompt, one) in enumerate(zip(prompts, states, strict=True))}
        left = sorted(distinct.values(), key=sizes.__getitem__)  # pairs of like size share a batch
        units = sum(sizes[i] for i in left)
        self._request_units += WEIGHT_OF_THE_LATEST * (units - self._request_units)
        key = now + self.cost.ms(units) / 1000
        item = _Item(key, future, now, None, side, prompts, states, left, {}, sizes, units)
        if left:
            self._put(item)
        else:
            future.set_result(Decoded([], 0.0, 0.0))
        return future

    @property
    def request_ms(self) -> float:
        """How long the pairs of one request take, on average."""
        return self.cost.ms(self._request_units)

    @property
    def depth(self) -> int:
        """Requests that wait or are being computed."""
        with self._changed:
            return sum(not item.future.cancelled() for item in self._items)

    @property
    def backlog_ms(self) -> float:
        """How long the pairs that wait will take, as predicted."""
        with self._changed:
            return self.cost.ms(sum(item.units_left for item in self._items if not item.future.cancelled()))

    def _put(self, item: _Item) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            bisect.insort(self._items, item, key=lambda one: one.key)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._items = [item for item in self._items if not item.future.cancelled()]
                while not self._items:
                    if self._closing:
                        return
                    self._changed.wait()
                    self._items = [item for item in self._items if not item.future.cancelled()]
                batch = self._next_batch()
            self._compute(batch)
            del batch  # or the last request's states would be held while nothing comes

    def _next_batch(self) -> list[tuple[_Item, list[int]]]:
        """The most urgent call alone, or the most urgent pairs of one model, up to a batch."""
        first = self._items[0]
        if first.call is not None:
            self._items.remove(first)
            return [(first, [])]
        batch: list[tuple[_Item, list[int]]] = []
        room, tokens = self._batch_pairs, BATCH_TOKENS
        for item in self._items:
            if item.side is not first.side or room == 0:
                continue
            taken: list[int] = []
            for position in item.left[:room]:
                tokens -= _tokens(item.prompts[position], item.states[position])
                if tokens < 0 and (batch or taken):
                    break
                taken.append(position)
            item.left = item.left[len(taken) :]
            item.units_left -= sum(item.sizes[i] for i in taken)
            room -= len(taken)
            if taken:
                batch.append((item, taken))
            if tokens < 0:
                break
        self._items = [item for item in self._items if item.call is not None or item.left]
        return batch

    def _compute(self, batch: list[tuple[_Item, list[int]]]) -> None:
        started = time.monotonic()
        for item, _ in batch:
            item.started = item.started or started
        try:
            first = batch[0][0]
            if first.call is not None:
                _finish(first.future, first.call())
                return
            self._decode(batch)
        except BaseException as exc:
            if len(batch) > 1:  # one request's failure is not the others'
                for part in batch:
                    self._compute([part])
                return
            self._drop(batch[0][0], exc)

    def _decode(self, batch: list[tuple[_Item, list[int]]]) -> None:
        side = batch[0][0].side
        assert side is not None
        prompts = [item.prompts[i] for item, positions in batch for i in positions]
        states = [item.states[i] for item, positions in batch for i in positions]
        started = time.perf_counter()
        margins = iter(side.margins(prompts, states, self._batch_pairs))
        took_ms = (time.perf_counter() - started) * 1000
        self.cost.learn(sum(item.sizes[i] for item, positions in batch for i in positions), took_ms)
        if self._on_batch is not None:
            self._on_batch(
                pairs=len(prompts), tokens=sum(_tokens(one, other) for one, other in zip(prompts, states, strict=True))
            )
        for item, positions in batch:
            item.margins.update(zip(positions, margins, strict=False))
            if not item.left:
                self._answer(item)

    def _answer(self, item: _Item) -> None:
        of_pair = {(id(item.prompts[i]), id(item.states[i])): margin for i, margin in item.margins.items()}
        margins = [of_pair[id(prompt), id(one)] for prompt, one in zip(item.prompts, item.states, strict=True)]
        started = item.started or item.arrived
        _finish(
            item.future,
            Decoded(margins, (started - item.arrived) * 1000, (time.monotonic() - started) * 1000),
        )

    def _drop(self, item: _Item, why: BaseException) -> None:
        with self._changed:
            self._items = [one for one in self._items if one is not item]
        with suppress(InvalidStateError):  # cancelled meanwhile
            item.future.set_exception(why)


def _tokens(prompt: Tokens, states: Tensor | PrefixKV) -> int:
    return len(prompt.ids) + (states.pooled if isinstance(states, PrefixKV) else len(states))


def _finish(future: Future[Any], result: Any) -> None:
    with suppress(InvalidStateError):  # cancelled meanwhile
        future.set_result(result)
