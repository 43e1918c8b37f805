from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring import batching
from kalm_cache.scoring.batching import DistinctPairs, Pair, by_size, compute_in_batches, fill_batch

PROMPT, OTHER_PROMPT = Tokens([1, 2, 3], False), Tokens([1, 2, 3], False)  # equal, but not the same object
SHORT, LONG = torch.zeros(2, 4), torch.zeros(5, 4)
CACHED = PrefixKV((1, 2), 2, torch.zeros(1))


def pairs_of(*lengths: int) -> list[Pair]:
    return DistinctPairs.of([PROMPT] * len(lengths), [torch.zeros(length, 4) for length in lengths]).pairs


def test_pairs_of_the_same_two_objects_are_one() -> None:
    distinct = DistinctPairs.of([PROMPT, PROMPT, OTHER_PROMPT, PROMPT], [SHORT, LONG, SHORT, SHORT])
    assert (len(distinct.pairs), distinct.places) == (3, [0, 1, 2, 0])
    assert distinct.spread({0: "a", 1: "b", 2: "c"}) == ["a", "b", "c", "a"]


def test_a_pair_is_computed_once_and_results_come_in_the_order_given() -> None:
    computed: list[list[int]] = []

    def compute(batch: Sequence[Pair]) -> list[int]:
        computed.append([len(pair.passage) for pair in batch])
        return computed[-1]

    passages = [LONG, SHORT, LONG, torch.zeros(3, 4)]
    assert compute_in_batches([PROMPT] * 4, passages, 2, compute) == [5, 2, 5, 3]
    assert computed == [[2, 3], [5]]  # by size, two at a time


def test_a_pair_has_the_tokens_after_its_cached_prefix_and_its_kind() -> None:
    [plain, cached] = DistinctPairs.of([PROMPT, PROMPT], [SHORT, CACHED]).pairs
    assert (plain.size.kind, plain.size.prompt, plain.size.pooled, plain.tokens) == ((0, ""), 3, 2, 5)
    assert (cached.size.kind, cached.size.prompt, cached.size.pooled, cached.tokens) == ((2, "torch.float32"), 1, 2, 5)


def test_a_batch_has_pairs_of_the_first_ones_kind_up_to_the_limit() -> None:
    pairs = DistinctPairs.of([PROMPT] * 4, [SHORT, CACHED, LONG, SHORT.clone()]).pairs
    assert fill_batch(pairs, 8) == [0, 2, 3]
    assert fill_batch(pairs, 2) == [0, 2]
    assert fill_batch(pairs[1:], 8) == [0]
    assert fill_batch([], 8) == []


def test_a_batch_is_padded_to_no_more_than_its_tokens_but_for_a_first_pair_that_is_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "BATCH_TOKENS", 20)  # three prompt tokens a pair beside the pooled states
    assert fill_batch(pairs_of(2, 5, 3, 4, 7), 8) == [0, 1]  # 2 · (3 + 5) = 16; with a third 24
    assert fill_batch(pairs_of(2, 9, 3, 1), 8) == [0, 2, 3]  # 2 · (3 + 9) = 24; 3 · (3 + 3) = 18
    assert fill_batch(pairs_of(50, 1), 8) == [0]


def test_pairs_are_sorted_by_kind_and_then_by_size() -> None:
    pairs = DistinctPairs.of([PROMPT] * 3, [CACHED, LONG, SHORT]).pairs
    assert by_size(pairs) == [2, 1, 0]
