"""Matryoshka embedding pooling (MEP): means of consecutive groups of states. Pure tensor code.

Letters in shapes: N passages, P pooled states of each as they are given, P' as they are returned, D state width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.errors import UsageError
from kalm_cache.model.layers.transfer import move_together


@dataclass(frozen=True, slots=True)
class PooledPassage:
    """One passage, ready for the decoder: its real tokens, whether it was cut, and its pooled states (P, D)."""

    tokens: int
    truncated: bool
    states: Tensor


def pooled_length(tokens: int, chunk_size: int) -> int:
    """How many pooled states a passage of `tokens` tokens has: ceil(tokens / ratio)."""
    return -(-tokens // chunk_size)


def mean_pool(states: Tensor, tokens: Sequence[int], chunk_size: int, *, stored_chunk_size: int = 1) -> list[Tensor]:
    """Average every `chunk_size` consecutive tokens' states of each passage; a passage's last group may be shorter.

    Works on states of single tokens, and on means stored at a smaller ratio: means of equal groups nest, so a group at
    `chunk_size` is the mean of `chunk_size / stored_chunk_size` stored means, each weighted by its number of tokens
    (only a passage's last one can have fewer than `stored_chunk_size`). Exact up to rounding.

    Args:
        states: (sum of P, D), the passages' states end to end, P = ceil(tokens / stored_chunk_size) each.
        tokens: tokens of each passage, 1 or more.
        chunk_size: the ratio wanted.
        stored_chunk_size: the ratio of `states`; 1 = one state a token.

    Returns:
        For each passage (ceil(tokens / ratio), D) in the states' dtype; at an equal ratio, the states as they are.

    Raises:
        UsageError: `chunk_size` is not a multiple of `stored_chunk_size`.
    """
    check_chunk_size(stored_chunk_size, chunk_size)
    lengths = torch.tensor(tokens)  # (N,)
    stored, wanted = _ceil(lengths, stored_chunk_size), _ceil(lengths, chunk_size)  # (N,) each: P, P'
    if chunk_size == stored_chunk_size:
        return list(states.split(stored.tolist()))  # views
    weights = torch.full((len(states),), float(stored_chunk_size))  # (ΣP,): how many tokens each state is the mean of
    # a passage's last state is the mean of the tokens that are left
    weights[stored.cumsum(0) - 1] = (lengths - stored_chunk_size * (stored - 1)).float()
    # (ΣP',): the number of each group within its passage, 0 1 2 0 1 …
    group = torch.arange(int(wanted.sum())) - (wanted.cumsum(0) - wanted).repeat_interleave(wanted)
    # (ΣP',): the row of `states` that each group begins at
    starts = (stored.cumsum(0) - stored).repeat_interleave(wanted) + group * (chunk_size // stored_chunk_size)
    sizes = (lengths.repeat_interleave(wanted) - group * chunk_size).clamp(max=chunk_size)  # (ΣP',): its tokens
    # A weighted sum of runs of rows, unequal in length, in one call and without padding: bag i holds the rows from
    # starts[i] to the next start, and rows are looked up as if `states` were a table of embeddings.
    # float32: half-precision sums lose digits that the mean needs
    rows, starts, weights, sizes = move_together([torch.arange(len(states)), starts, weights, sizes], states.device)
    sums = F.embedding_bag(rows, states.float(), starts, mode="sum", per_sample_weights=weights)
    # (ΣP', D) / (ΣP', 1)
    return list((sums / sizes.unsqueeze(1)).to(states.dtype).split(wanted.tolist()))


def _ceil(tokens: Tensor, chunk_size: int) -> Tensor:
    return (tokens + chunk_size - 1) // chunk_size


def check_chunk_size(stored_chunk_size: int, chunk_size: int) -> None:
    """Raise `UsageError` unless states stored at `stored_chunk_size` can serve `chunk_size`."""
    if chunk_size < 1 or chunk_size % stored_chunk_size:
        multiples = ", ".join(str(stored_chunk_size * step) for step in (1, 2, 4, 8))
        raise UsageError(
            f"chunk size {chunk_size} was asked for, but the states are stored at {stored_chunk_size}; "
            f"a multiple of it ({multiples}, …) works without re-indexing"
        )
