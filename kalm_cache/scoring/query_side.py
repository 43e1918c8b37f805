"""The query side, online: query -> prompt tokens -> margins over pooled passages. Never touches the encoder.

Legend: N query-passage pairs, T prompt tokens, P pooled states, D state width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.errors import NonFiniteLogitsError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.precision import dtype_name
from kalm_cache.model.prompts import (
    DEFAULT_INSTRUCTION,
    DEFAULT_SYSTEM_INSTRUCTION,
    PromptTokenizer,
    Tokens,
    load_prompt_tokenizer,
)
from kalm_cache.model.runtime import load_decoder

DECODE_BATCH = 32  # pairs decoded together, unless the caller says otherwise
BATCH_TOKENS = 16_384  # prompt tokens and pooled states decoded together: bounds the buffers of keys and scores


@dataclass(frozen=True, slots=True)
class QuerySide:
    """Tokenizer and decoder with a fixed `query_max_length` (tokens)."""

    tokenizer: PromptTokenizer
    decoder: QueryDecoder
    device: torch.device
    dtype: torch.dtype
    query_max_length: int

    def prompt(self, query: str, instruction: str, system_instruction: str) -> Tokens:
        """The prompt's tokens; `truncated` says whether the query was cut."""
        return self.tokenizer.prompt(query, instruction, system_instruction, self.query_max_length)

    def prefix(self, instruction: str, system_instruction: str) -> tuple[int, ...]:
        """Token ids that the prompts of an instruction begin with; `PromptTokenizer.prefix` says how far."""
        return _prefix(self.tokenizer, instruction, system_instruction)

    def margins(self, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV], batch_size: int) -> list[float]:
        """The margin yes_logit − no_logit of each (prompt, passage) pair, in the order given.

        Pairs are sorted by size first, so that a batch holds little padding. A pair of the very same objects is
        decoded once: in two batches its margins could differ in the last bits, and equal pairs should tie.

        Args:
            prompts: one a pair; the same object may be repeated.
            passages: pooled states (P, D), of any dtype and device, or what `prefill` kept under a prefix that the
                pair's prompt begins with; the same object may be repeated.
            batch_size: pairs decoded together at most; long ones are decoded in smaller batches.

        Raises:
            NonFiniteLogitsError: the model overflowed in this dtype.
        """
        pairs = [(id(prompt), id(passage)) for prompt, passage in zip(prompts, passages, strict=True)]
        distinct = {pair: i for i, pair in enumerate(pairs)}  # pair -> its last position
        sizes = {i: _size(prompts[i], passages[i]) for i in distinct.values()}
        margins = torch.empty(len(pairs))
        for batch in _batches(sizes, batch_size):
            margins[batch] = self._decode([prompts[i] for i in batch], [passages[i] for i in batch]).cpu()
        if not bool(margins[list(distinct.values())].isfinite().all()):
            raise NonFiniteLogitsError(
                f"the decoder's logits are not finite in {dtype_name(self.dtype)}; use bfloat16 or float32"
            )
        return [float(margins[distinct[pair]]) for pair in pairs]

    def prefill(
        self, prefix: tuple[int, ...], pooled: Sequence[Tensor], batch_size: int, dtype: torch.dtype
    ) -> list[PrefixKV]:
        """Run a prompt's first tokens over passages, and keep the keys and values: `margins` can go on from them.

        Args:
            prefix: of `prefix()`.
            pooled: states (P, D) each.
            batch_size: passages run together at most.
            dtype: what is kept: float32, bfloat16, or int8 with a scale for each vector.
        """
        sizes = {i: _PairSize((0, ""), len(prefix), len(states)) for i, states in enumerate(pooled)}
        cached: dict[int, PrefixKV] = {}
        for batch in _batches(sizes, batch_size):
            states = [pooled[i] for i in batch]
            cached.update(
                zip(batch, self.decoder.prefill(prefix, self._pack(states), _counts(states), dtype), strict=True)
            )
        return [cached[i] for i in range(len(pooled))]

    def warm_up(self) -> None:
        """Decode pairs of nothing once, of common sizes: what is made or read at the first use is, before a query."""
        prompts, states = self.warm_up_pairs()
        for count in (1, len(prompts)):
            self.margins(prompts[:count], states[:count], DECODE_BATCH)

    def warm_up_pairs(self) -> tuple[list[Tokens], list[Tensor]]:
        """A batch of pairs of nothing, of a common size: to warm up with, or to measure what a batch takes."""
        prompt = self.prompt("", DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION)
        states = torch.zeros(64, self.decoder.stack.config.hidden_size)
        return [prompt] * DECODE_BATCH, [states.clone() for _ in range(DECODE_BATCH)]

    def _decode(self, prompts: list[Tokens], passages: list[Tensor | PrefixKV]) -> Tensor:
        """One batch: passages all of one kind, and of one prefix."""
        distinct = {id(prompt): prompt.ids for prompt in prompts}
        places = {key: place for place, key in enumerate(distinct)}
        of_pair = [places[id(prompt)] for prompt in prompts]
        cached = [passage for passage in passages if isinstance(passage, PrefixKV)]
        if cached:
            rests = [ids[len(cached[0].prefix) :] for ids in distinct.values()]
            return self.decoder.margins_after(Prompts(rests, of_pair), cached)
        states = [passage for passage in passages if isinstance(passage, Tensor)]
        return self.decoder.margins(Prompts(list(distinct.values()), of_pair), self._pack(states), _counts(states))

    def _pack(self, states: Sequence[Tensor]) -> Tensor:
        """(sum of P, D) in the decoder's dtype, on its device."""
        stack = self.decoder.stack
        return torch.cat([one.to(stack.device, stack.dtype) for one in states])


@functools.lru_cache(maxsize=64)
def _prefix(tokenizer: PromptTokenizer, instruction: str, system_instruction: str) -> tuple[int, ...]:
    return tokenizer.prefix(instruction, system_instruction)


def _counts(states: Sequence[Tensor]) -> list[int]:
    return [len(one) for one in states]


@dataclass(frozen=True, slots=True, order=True)
class _PairSize:
    """What pairs of one batch must have in common (kind), and what they had better have alike.

    kind: tokens of the kept prefix and the dtype it is kept in; own: prompt tokens after it; pooled: pooled states.
    """

    kind: tuple[int, str]
    own: int
    pooled: int


def _size(prompt: Tokens, passage: Tensor | PrefixKV) -> _PairSize:
    if isinstance(passage, PrefixKV):
        prefix = len(passage.prefix)
        return _PairSize((prefix, str(passage.states.dtype)), len(prompt.ids) - prefix, passage.pooled)
    return _PairSize((0, ""), len(prompt.ids), len(passage))


def _batches(sizes: Mapping[int, _PairSize], batch_size: int) -> Iterator[list[int]]:
    """Pairs in batches of like sizes, short ones first; a batch's padded size is at most BATCH_TOKENS."""
    batch: list[int] = []
    pooled = 0
    for i in sorted(sizes, key=sizes.__getitem__):
        size = sizes[i]
        pooled = max(pooled, size.pooled)
        full = len(batch) == batch_size or (len(batch) + 1) * (size.own + pooled) > BATCH_TOKENS
        if batch and (full or size.kind != sizes[batch[0]].kind):
            yield batch
            batch, pooled = [], size.pooled
        batch.append(i)
    if batch:
        yield batch


def load_query_side(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, query_max_length: int
) -> QuerySide:
    """Load the decoder half of a checkpoint. Raises `CheckpointError` when something is missing."""
    tokenizer = load_prompt_tokenizer(checkpoint.folder)
    decoder = load_decoder(checkpoint, tokenizer.answer_ids(), device, dtype)
    return QuerySide(tokenizer, decoder, device, dtype, query_max_length)


def score_of(margin: float) -> float:
    """P(yes) = sigmoid(margin), in float64: no ties where half precision would saturate."""
    if margin >= 0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)
