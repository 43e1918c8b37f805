"""Token-budget batching against batches worked out by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from indexer.build.batching import batch_by_tokens
from kalm_cache.errors import UsageError


def batches(items: list[str], budget_tokens: int, window: int = 100) -> list[list[str]]:
    return list(batch_by_tokens(items, length=len, budget_tokens=budget_tokens, window=window))


def test_batches_are_longest_first_and_fill_the_budget_when_padded() -> None:
    assert batches(["a", "bbbb", "cc", "ddd", "ee"], budget_tokens=8) == [["bbbb", "ddd"], ["cc", "ee", "a"]]


def test_a_batch_may_fill_the_budget_exactly_and_not_beyond() -> None:
    assert batches(["aa", "bb", "cc"], budget_tokens=6) == [["aa", "bb", "cc"]]
    assert batches(["aa", "bb", "cc"], budget_tokens=5) == [["aa", "bb"], ["cc"]]


def test_an_item_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert batches(["a", "bbbbb", "cccc", "d"], budget_tokens=3) == [["bbbbb"], ["cccc"], ["a", "d"]]


def test_equal_lengths_keep_their_order() -> None:
    assert batches(["b", "a", "c"], budget_tokens=3) == [["b", "a", "c"]]


def test_no_batch_spans_two_windows() -> None:
    assert batches(["a", "bb", "ccc", "d", "e"], budget_tokens=100, window=2) == [["bb", "a"], ["ccc", "d"], ["e"]]


def test_items_of_no_tokens_share_one_batch() -> None:
    assert batches(["", "", "a"], budget_tokens=3) == [["a", "", ""]]
    assert batches(["", ""], budget_tokens=1) == [["", ""]]


def test_nothing_makes_no_batches() -> None:
    assert batches([], budget_tokens=1) == []


def test_one_window_is_read_before_its_first_batch_and_no_more() -> None:
    source = itertools.count(1)
    result = batch_by_tokens(source, length=lambda ordinal: ordinal, budget_tokens=8, window=4)
    assert next(result) == [4, 3]
    assert next(result) == [2, 1]
    assert next(source) == 5


def test_every_item_is_in_exactly_one_batch_within_the_budget() -> None:
    random.seed(0)
    items = [(ordinal, random.randint(1, 60)) for ordinal in range(1000)]
    result = list(batch_by_tokens(items, length=lambda item: item[1], budget_tokens=50, window=64))
    assert sorted(item for batch in result for item in batch) == items
    assert all(len(batch) == 1 or len(batch) * max(length for _, length in batch) <= 50 for batch in result)


@pytest.mark.parametrize(("budget_tokens", "window"), [(0, 1), (1, 0), (-5, 1)])
def test_a_budget_or_window_below_one_is_a_usage_error_at_the_call(budget_tokens: int, window: int) -> None:
    with pytest.raises(UsageError, match="it must be at least 1"):
        batch_by_tokens(["a"], length=len, budget_tokens=budget_tokens, window=window)
