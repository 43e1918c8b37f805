"""Query-passage pairs → batches for the decoder: sizes, token budget, and equal pairs once. Computes no margin.

Legend: P pooled states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.prompts import Tokens

DECODE_BATCH = 32  # pairs decoded together, unless the caller says otherwise
BATCH_TOKENS = 16_384  # prompt tokens and pooled states decoded together: bounds the buffers of keys and scores

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, order=True)
class PairSize:
    """What pairs of one batch must have in common (`kind`), and what should be alike, as a batch is padded.

    kind: tokens of the cached prefix and the dtype it is stored in; (0, "") for pooled states.
    prompt: prompt tokens after the prefix.
    pooled: pooled states.
    """

    kind: tuple[int, str]
    prompt: int
    pooled: int


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A prompt, and the passage that it judges: pooled states (P, D), or keys and values cached under a prefix."""

    prompt: Tokens
    passage: Tensor | PrefixKV
    size: PairSize

    @property
    def tokens(self) -> int:
        """Tokens of the whole prompt, and pooled states."""
        return len(self.prompt.ids) + self.size.pooled


@dataclass(frozen=True, slots=True)
class DistinctPairs:
    """Pairs without repetition. `places[i]` is where in `pairs` the i-th pair that was given is."""

    pairs: list[Pair]
    places: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV]) -> DistinctPairs:
        """Pairs of the very same two objects become one: in two batches its margins could differ in the last bits, and
        equal pairs should tie.
        """
        pairs: list[Pair] = []
        first: dict[tuple[int, int], int] = {}
        places = []
        for prompt, passage in zip(prompts, passages, strict=True):
            place = first.setdefault((id(prompt), id(passage)), len(pairs))
            if place == len(pairs):
                pairs.append(Pair(prompt, passage, _size(prompt, passage)))
            places.append(place)
        return cls(pairs, places)

    def spread(self, results: Mapping[int, _T]) -> list[_T]:
        """Results by place in `pairs` → those of the pairs that were given."""
        return [results[place] for place in self.places]


@dataclass(slots=True)
class Batch:
    """Pairs of one kind that are decoded together: at most `limit`, padded to at most `BATCH_TOKENS`."""

    limit: int
    pairs: list[Pair] = field(default_factory=list)
    _prompt: int = 0  # the longest of each: what all pairs are padded to
    _pooled: int = 0

    def add(self, pair: Pair) -> bool:
        """Take a pair if it fits; the first one always does."""
        prompt, pooled = max(self._prompt, pair.size.prompt), max(self._pooled, pair.size.pooled)
        if self.pairs and (
            self.full
            or pair.size.kind != self.pairs[0].size.kind
            or (len(self.pairs) + 1) * (prompt + pooled) > BATCH_TOKENS
        ):
            return False
        self.pairs.append(pair)
        self._prompt, self._pooled = prompt, pooled
        return True

    @property
    def full(self) -> bool:
        """Whether no pair of any size fits."""
        return len(self.pairs) >= self.limit


def by_size(pairs: Sequence[Pair]) -> list[int]:
    """Positions of the pairs, those of one kind together, small ones first: neighbours need little padding."""
    return sorted(range(len(pairs)), key=lambda i: pairs[i].size)


def compute_in_batches(
    prompts: Sequence[Tokens],
    passages: Sequence[Tensor | PrefixKV],
    limit: int,
    compute: Callable[[list[Pair]], Sequence[_T]],
) -> list[_T]:
    """What `compute` makes of each (prompt, passage) pair, in the order given; it gets at most `limit` at a time."""
    distinct = DistinctPairs.of(prompts, passages)
    order = by_size(distinct.pairs)
    results = [result for batch in _batches([distinct.pairs[i] for i in order], limit) for result in compute(batch)]
    return distinct.spread(dict(zip(order, results, strict=True)))


def _batches(pairs: Iterable[Pair], limit: int) -> Iterator[list[Pair]]:
    batch = Batch(limit)
    for pair in pairs:
        if not batch.add(pair):
            yield batch.pairs
            batch = Batch(limit)
            batch.add(pair)
    if batch.pairs:
        yield batch.pairs


def distinct_prompts(pairs: Sequence[Pair]) -> tuple[list[list[int]], list[int]]:
    """The token ids of each distinct prompt, and which of them each pair has."""
    places: dict[int, int] = {}
    ids: list[list[int]] = []
    for pair in pairs:
        if places.setdefault(id(pair.prompt), len(ids)) == len(ids):
            ids.append(pair.prompt.ids)
    return ids, [places[id(pair.prompt)] for pair in pairs]


def _size(prompt: Tokens, passage: Tensor | PrefixKV) -> PairSize:
    if isinstance(passage, PrefixKV):
        prefix = len(passage.prefix)
        return PairSize((prefix, str(passage.states.dtype)), len(prompt.ids) - prefix, passage.pooled)
    return PairSize((0, ""), len(prompt.ids), len(passage))
