"""The query side, online: query -> prompt tokens -> margins over pooled passages. Never touches the encoder.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kalm_cache.calibration import sigmoid
from kalm_cache.errors import NonFiniteLogitsError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.kernels.prefix_kv import PrefixKV, SharedPrefixKV
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.layers.int8 import int8_products
from kalm_cache.model.precision import describe_device, dtype_name
from kalm_cache.model.prompts import Prompt, PromptTokenizer, PromptTokens, Tokens, load_prompt_tokenizer
from kalm_cache.model.runtime import load_decoder
from kalm_cache.scoring.batching import (
    Pair,
    SharedPrompt,
    batch_pairs,
    batch_tokens,
    compute_in_batches,
    distinct_prompts,
)
from kalm_cache.scoring.isolated_prefix import IsolatedPrefixes
from kalm_cache.scoring.room import Room

PREFILLED = 8  # passages at a time, of those that a mean is over


@dataclass(frozen=True, slots=True)
class QuerySide:
    """Tokenizer and decoder with a fixed `query_max_length` (tokens)."""

    tokenizer: PromptTokenizer
    decoder: QueryDecoder
    device: torch.device
    dtype: torch.dtype
    query_max_length: int
    room: Room = field(init=False, repr=False)
    isolated: IsolatedPrefixes | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "room", Room(self.device))
        isolates = self.decoder.isolated_prefix
        object.__setattr__(self, "isolated", IsolatedPrefixes(self.decoder) if isolates else None)

    @property
    def computation(self) -> str:
        """What it computes in, and on what: for a log."""
        products = f", products by {int8_products().name}" if self.dtype == torch.int8 else ""
        kernels = self.decoder.stack.kernels.name
        return f"{dtype_name(self.dtype)} on {describe_device(self.device)}, {kernels} kernels{products}"

    @property
    def batch_pairs(self) -> int:
        """Pairs that the device decodes together."""
        return batch_pairs(self.device)

    @property
    def batch_tokens(self) -> int:
        """Prompt tokens and pooled states that the device decodes together."""
        return batch_tokens(self.device)

    def tokenize(self, prompt: Prompt) -> PromptTokens:
        """The whole prompt's tokens; `truncated` says whether the query was cut.

        With the prefix that all passages share, where the decoder was trained to have one.
        """
        tokens = self.tokenizer.prompt(prompt, self.query_max_length)
        return tokens if self.isolated is None else self.isolated.share(tokens, self.prefix(prompt))

    def prefix(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids that prompts begin with whatever their query; `PromptTokenizer.prefix` says how far."""
        return _prefix(self.tokenizer, replace(prompt, query=""))

    def margins(self, prompts: Sequence[Tokens], passages: Sequence[Tensor | PrefixKV], batch_size: int) -> list[float]:
        """The margin yes_logit − no_logit of each (prompt, passage) pair, in the order given.

        Args:
            prompts: one a pair; the same object may be repeated.
            passages: pooled states (P, D), of any dtype and device, or what `prefill` cached under a prefix that the
                pair's prompt begins with; the same object may be repeated. A pair of the very same two objects is
                decoded once.
            batch_size: pairs decoded together at most; long ones are decoded in smaller batches.

        Raises:
            NonFiniteLogitsError: the model overflowed in this dtype.
            DeviceMemoryError: the device has no memory for one pair alone.
            DeviceLostError: the device fails until the process ends.
        """
        return compute_in_batches(prompts, passages, batch_size, self.decode, self.batch_tokens)

    def decode(self, batch: Sequence[Pair]) -> list[float]:
        """The margins of one batch: pairs of one kind, decoded together where they fit. Raises as `margins`."""
        return self.room.compute(batch, _tokens_of, self._decode)

    def _decode(self, batch: Sequence[Pair]) -> list[float]:
        # a query's prompt stands in many pairs: the decoder computes it once, as far as it depends on no passage
        ids, of_pair = distinct_prompts(batch)
        cached = [pair.passage for pair in batch if isinstance(pair.passage, PrefixKV)]
        if cached:
            prefix = len(cached[0].prefix)  # L, the same for all pairs of one kind
            margins = self.decoder.margins_after(Prompts([each[prefix:] for each in ids], of_pair), cached)
        else:
            states, shared = _states(batch), _shared(batch[0].prompt)
            prefix = 0 if shared is None else len(shared.prefix)
            rests = Prompts([each[prefix:] for each in ids], of_pair)
            margins = self.decoder.margins(rests, self._pack(states), _counts(states), shared)
        margins = margins.cpu()  # (N,), one transfer
        if not bool(margins.isfinite().all()):
            raise NonFiniteLogitsError(
                f"the decoder's logits are not finite in {dtype_name(self.dtype)}; use bfloat16 or float32"
            )
        return margins.tolist()

    def prefill(
        self, prefix: tuple[int, ...], pooled: Sequence[Tensor], batch_size: int, dtype: torch.dtype
    ) -> list[PrefixKV]:
        """Run a prompt's first tokens over passages, and return the keys and values: `margins` can go on from them.

        Not of a decoder that isolates its prefix.

        Args:
            prefix: of `prefix()`.
            pooled: states (P, D) each.
            batch_size: passages run together at most.
            dtype: of what is returned: float32, bfloat16, or int8 with a scale for each vector.
        """

        assert self.isolated is None

        def run(batch: Sequence[Pair]) -> list[PrefixKV]:
            states = _states(batch)
            return self.decoder.prefill(prefix, self._pack(states), _counts(states), dtype)

        # one object, repeated: one prompt for all passages
        prompts = [Tokens(list(prefix), False)] * len(pooled)

        def compute(batch: Sequence[Pair]) -> list[PrefixKV]:
            return self.room.compute(batch, _tokens_of, run)

        return compute_in_batches(prompts, pooled, batch_size, compute, self.batch_tokens)

    def mean_prefix(self, prefix: tuple[int, ...], pooled: Sequence[Tensor]) -> SharedPrefixKV:
        """The mean of a prefix's keys and values over passages, each of which counts as much.

        Args:
            prefix: of `prefix()`.
            pooled: states (P, D) of a passage or more.
        """
        stack, total = self.decoder.stack, torch.zeros(())
        for start in range(0, len(pooled), PREFILLED):  # all of a passage's are kept for a moment: some at a time
            some = self.prefill(prefix, pooled[start : start + PREFILLED], PREFILLED, torch.float32)
            total = total.to(stack.device) + sum(each.states[..., : len(prefix), :] for each in some)
        return SharedPrefixKV(prefix, (total / len(pooled)).to(stack.dtype).contiguous())  # (layers, 2, K, L, E)

    def warm_up(self) -> None:
        """Decode pairs of nothing once, of common sizes: what is made or read at the first use is, before a query."""
        prompts, states = self.warm_up_pairs()
        for count in (1, len(prompts)):
            self.margins(prompts[:count], states[:count], self.batch_pairs)

    def warm_up_pairs(self) -> tuple[list[Tokens], list[Tensor]]:
        """A batch of pairs of nothing, of a common size: to warm up with, or to measure what a batch takes."""
        prompt = self.tokenize(Prompt(""))
        # clones: pairs of the very same two objects would be decoded once
        states = torch.zeros(64, self.decoder.stack.config.hidden_size)
        return [prompt] * self.batch_pairs, [states.clone() for _ in range(self.batch_pairs)]

    def _pack(self, states: Sequence[Tensor]) -> Tensor:
        """(sum of P, D) in the decoder's dtype, where they are, or else on its device."""
        stack, places = self.decoder.stack, {pooled.device for pooled in states}
        # one tensor, wherever it lies: it goes to the device with all that the batch needs there
        place = places.pop() if len(places) == 1 else stack.device
        return torch.cat([pooled.to(place, stack.dtype) for pooled in states])  # (P, D) each -> (ΣP, D)


@functools.lru_cache(maxsize=64)
def _prefix(tokenizer: PromptTokenizer, prompt: Prompt) -> tuple[int, ...]:
    return tokenizer.prefix(prompt)


def _tokens_of(pair: Pair) -> int:
    return pair.tokens


def _states(batch: Sequence[Pair]) -> list[Tensor]:
    return [pair.passage for pair in batch if isinstance(pair.passage, Tensor)]


def _shared(prompt: Tokens) -> SharedPrefixKV | None:
    return prompt.shared if isinstance(prompt, SharedPrompt) else None


def _counts(states: Sequence[Tensor]) -> list[int]:
    return [len(pooled) for pooled in states]


def load_query_side(
    checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype, query_max_length: int
) -> QuerySide:
    """Load the decoder half of a checkpoint. Raises `CheckpointError` when something is missing."""
    tokenizer = load_prompt_tokenizer(checkpoint.folder, checkpoint.config.decoder.vocab_size)
    decoder = load_decoder(checkpoint, tokenizer.answer_ids(), device, dtype)
    return QuerySide(tokenizer, decoder, device, dtype, query_max_length)


def score_of(margin: float) -> float:
    """P(yes) = sigmoid(margin)."""
    return sigmoid(margin)
