"""Items → batches: so many at a time, or as many as fit a token budget; or a sample. Knows nothing of the items."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from kalm_cache.errors import UsageError

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def batch_by_tokens(
    items: Iterable[T], *, length: Callable[[T], int], budget_tokens: int, window: int
) -> Iterator[list[T]]:
    """Batches whose padded size, count × longest, is at most `budget_tokens`; a longer item makes a batch by itself.

    Takes `window` items at a time and sorts them longest first, so that the first batch already shows the peak memory;
    equal lengths keep their order. No batch spans two windows.

    Raises:
        UsageError: `budget_tokens` or `window` is below 1.
    """
    for name, value in (("budget_tokens", budget_tokens), ("window", window)):
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    return _batches(iter(items), length, budget_tokens, window)


def _batches(items: Iterator[T], length: Callable[[T], int], budget_tokens: int, window: int) -> Iterator[list[T]]:
    for taken in batched(items, window):
        taken.sort(key=length, reverse=True)  # stable, in reverse too
        yield from _cut(taken, length, budget_tokens)


def _cut(longest_first: Sequence[T], length: Callable[[T], int], budget_tokens: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in longest_first:
        if batch and (len(batch) + 1) * length(batch[0]) > budget_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


class Sample(Generic[T]):
    """Reservoir sampling, seeded: of the items added so far, each is in the sample with the same probability."""

    def __init__(self, size: int, seed: int) -> None:
        self.items: list[T] = []
        self._size, self._seen, self._chance = size, 0, random.Random(seed)

    def add(self, item: T) -> None:
        """Perhaps take an item in, for another one."""
        self._seen += 1
        if len(self.items) < self._size:
            self.items.append(item)
        elif (slot := self._chance.randrange(self._seen)) < self._size:
            self.items[slot] = item
