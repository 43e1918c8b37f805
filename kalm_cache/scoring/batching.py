"""Query-passage pairs → batches for the decoder: sizes, token budget, and equal pairs once. Computes no margin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV, SharedPrefixKV
from kalm_cache.model.prompts import PromptTokens, Tokens

DECODE_BATCH = 32  # pairs decoded together, unless the caller says otherwise
BATCH_TOKENS = 16_384  # prompt tokens and pooled states decoded together: bounds the buffers of keys and scores
ENCODE_TOKENS = (4096, 16_384)  # passage tokens that a CPU encodes together, at least and at most
ENCODE_TOKENS_A_CORE = 1024  # each core has rows enough then: more of them make no product faster
GPU_ENCODE_TOKENS = (8192, 131_072)
GPU_BYTES_A_TOKEN = 1 << 20  # of its memory, as a rule of thumb: what does not fit is halved (`Room`)
GPU_FACTOR = 8  # a GPU decodes so many times as much together: a batch costs it hundreds of launches, whatever its size

_T = TypeVar("_T")


def batch_pairs(device: torch.device) -> int:
    """Pairs that a device decodes together."""
    return DECODE_BATCH * (GPU_FACTOR if device.type == "cuda" else 1)


def batch_tokens(device: torch.device) -> int:
    """Prompt tokens and pooled states that a device decodes together."""
    return BATCH_TOKENS * (GPU_FACTOR if device.type == "cuda" else 1)


def encode_tokens(device: torch.device) -> int:
    """Passage tokens that a device encodes together, padding included: by a GPU's memory, or by torch's threads."""
    if device.type != "cuda":
        least, most = ENCODE_TOKENS
        return min(most, max(least, ENCODE_TOKENS_A_CORE * torch.get_num_threads()))
    least, most = GPU_ENCODE_TOKENS
    fitting = torch.cuda.get_device_properties(device).total_memory // GPU_BYTES_A_TOKEN
    return min(most, max(least, 1 << (fitting.bit_length() - 1)))  # a power of two: few shapes


@dataclass(frozen=True, slots=True)
class SharedPrompt(PromptTokens):
    """A prompt that begins with `shared`: these tokens have the same keys and values whatever the passage."""

    shared: SharedPrefixKV


@dataclass(frozen=True, slots=True, order=True)
class PairSize:
    """What pairs of one batch must have in common (`kind`), and what should be alike, as a batch is padded.

    kind: tokens of the prefix that is not computed, and which it is: the dtype that it is cached in, or the very object
        that is shared; (0, "") where all of the prompt is.
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
            # by identity: comparing tensors would cost more, and the sequences keep both objects alive
            place = first.setdefault((id(prompt), id(passage)), len(pairs))
            if place == len(pairs):
                pairs.append(Pair(prompt, passage, _size(prompt, passage)))
            places.append(place)
        return cls(pairs, places)

    def spread(self, results: Mapping[int, _T]) -> list[_T]:
        """Results by place in `pairs` → those of the pairs that were given."""
        return [results[place] for place in self.places]


def by_size(pairs: Sequence[Pair]) -> list[int]:
    """Positions of the pairs, those of one kind together, small ones first: neighbours need little padding."""
    return sorted(range(len(pairs)), key=lambda i: pairs[i].size)


def fill_batch(pairs: Iterable[Pair], limit: int, tokens: int | None = None) -> list[int]:
    """Positions of the pairs to decode together: the first one, and each later one of its kind that still fits.

    At most `limit` pairs, padded to at most `tokens` (`None`: `BATCH_TOKENS`); the first one is taken however long it
    is.
    """
    most = BATCH_TOKENS if tokens is None else tokens
    taken: list[int] = []
    kind, prompt, pooled = None, 0, 0
    for i, pair in enumerate(pairs):
        longest = max(prompt, pair.size.prompt), max(pooled, pair.size.pooled)
        if not taken:
            kind = pair.size.kind
        elif pair.size.kind != kind or (len(taken) + 1) * sum(longest) > most:  # N · (T + P), with padding
            continue
        taken.append(i)
        prompt, pooled = longest
        if len(taken) == limit:
            break
    return taken


def compute_in_batches(
    prompts: Sequence[Tokens],
    passages: Sequence[Tensor | PrefixKV],
    limit: int,
    compute: Callable[[list[Pair]], Sequence[_T]],
    tokens: int | None = None,
) -> list[_T]:
    """What `compute` makes of each (prompt, passage) pair, in the order given.

    It gets at most `limit` at a time, and at most `tokens` as `fill_batch` counts them.
    """
    distinct = DistinctPairs.of(prompts, passages)
    left, results = by_size(distinct.pairs), dict[int, _T]()
    while left:
        batch = [left[i] for i in fill_batch((distinct.pairs[place] for place in left), limit, tokens)]
        results.update(zip(batch, compute([distinct.pairs[place] for place in batch]), strict=True))
        left = [place for place in left if place not in results]
    return distinct.spread(results)


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
    if isinstance(prompt, SharedPrompt):
        prefix = len(prompt.shared.prefix)
        return PairSize((prefix, f"shared {id(prompt.shared)}"), len(prompt.ids) - prefix, len(passage))
    return PairSize((0, ""), len(prompt.ids), len(passage))
