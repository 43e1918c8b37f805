"""The query side, online: query -> prompt tokens -> margins over pooled passages. Never touches the encoder.

Legend: N query-passage pairs, T prompt tokens, P pooled states, D state width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kalm_cache.errors import NonFiniteLogitsError
from kalm_cache.model.checkpoint import Checkpoint
from kalm_cache.model.decoder import QueryDecoder
from kalm_cache.model.prompts import PromptTokenizer, Tokens, load_prompt_tokenizer
from kalm_cache.model.runtime import dtype_name, load_decoder


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

    @torch.inference_mode()
    def margins(self, prompts: Sequence[Tokens], pooled: Sequence[Tensor], batch_size: int) -> list[float]:
        """The margin yes_logit − no_logit of each (prompt, pooled passage) pair, in the order given.

        Pairs are sorted by size first, so that a batch holds little padding. A pair of the very same objects is
        decoded once: in two batches its margins could differ in the last bits, and equal pairs should tie.

        Args:
            prompts: one a pair; the same object may be repeated.
            pooled: (P, D) each, any dtype and device; the same object may be repeated.
            batch_size: pairs decoded together.

        Raises:
            NonFiniteLogitsError: the model overflowed in this dtype.
        """
        pairs = [(id(prompt), id(states)) for prompt, states in zip(prompts, pooled, strict=True)]
        distinct = {pair: i for i, pair in enumerate(pairs)}  # pair -> its last position
        order = sorted(distinct.values(), key=lambda i: (len(prompts[i].ids), len(pooled[i])))
        margins = torch.empty(len(pairs))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            margins[batch] = self._decode([prompts[i] for i in batch], [pooled[i] for i in batch]).cpu()
        if not bool(margins[order].isfinite().all()):
            raise NonFiniteLogitsError(
                f"the decoder's logits are not finite in {dtype_name(self.dtype)}; use bfloat16 or float32"
            )
        return [float(margins[distinct[pair]]) for pair in pairs]

    def _decode(self, prompts: list[Tokens], pooled: list[Tensor]) -> Tensor:
        ids = pad_sequence([torch.tensor(prompt.ids) for prompt in prompts], batch_first=True)  # (N, T)
        last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts])  # (N,)
        counts = torch.tensor([len(states) for states in pooled])
        # cast before padding: `pad_sequence` would give every passage the first one's dtype
        cast = [states.to(self.device, self.dtype) for states in pooled]
        states = pad_sequence(cast, batch_first=True)  # (N, P, D)
        mask = torch.arange(states.shape[1]) < counts.unsqueeze(1)  # (N, P)
        return self.decoder(ids.to(self.device), last.to(self.device), states, mask.to(self.device))


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
