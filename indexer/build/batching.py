"""Items of differing lengths → batches that fit a token budget when padded. Knows nothing of what the items are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from kalm_cache.errors import UsageError

T = TypeVar("T")


def batch_by_tokens(
    items: Iterable[T], *, length: Callable[[T], int], budget_tokens: int, window: int
) -> Iterator[list[T]]:
    """Batches whose padded size, count × longest, is at most `budget_tokens`; a longer single item is one of its own.

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
    while taken := list(itertools.islice(items, window)):
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
