"""Matryoshka embedding pooling (MEP): means of consecutive groups of states. Pure tensor code.

Legend: B batch, S passage tokens, D state width, r pooling ratio (`ratio`), P = ceil(S / r) pooled states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.errors import UsageError


@dataclass(frozen=True, slots=True)
class PooledPassage:
    """One passage, ready for the decoder: its real tokens, whether it was cut, and its pooled states (P, D)."""

    tokens: int
    truncated: bool
    states: Tensor


def pooled_length(tokens: int, ratio: int) -> int:
    """How many pooled states a passage of `tokens` tokens has: ceil(tokens / ratio)."""
    return -(-tokens // ratio)


def mean_pool(states: Tensor, mask: Tensor, ratio: int) -> Tensor:
    """Average every `ratio` consecutive states, counting real tokens only; the last group may be shorter.

    Args:
        states: (B, S, D), padded on the right.
        mask: (B, S) bool, True where a token is real.
        ratio: r ≥ 1; 1 returns the states as they are (padding zeroed).

    Returns:
        (B, ceil(S / r), D) in the states' dtype; groups without a real token are zero.
    """
    padding = -states.shape[1] % ratio
    groups = F.pad(states * mask.unsqueeze(-1), (0, 0, 0, padding)).unflatten(1, (-1, ratio))  # (B, P, r, D)
    counts = F.pad(mask, (0, padding)).unflatten(1, (-1, ratio)).sum(2, keepdim=True)  # (B, P, 1)
    # float32: half-precision sums lose digits that the mean needs
    return (groups.sum(2, dtype=torch.float32) / counts.clamp(min=1)).to(states.dtype)


def repool(pooled: Tensor, tokens: int, stored_ratio: int, ratio: int) -> Tensor:
    """Pooled states of one passage at a larger ratio, from those stored at a smaller one. Exact up to rounding.

    Means of equal groups nest: a group at `ratio` is the mean of `ratio / stored_ratio` stored means, each weighted
    by its number of tokens (only the passage's last one can have fewer than `stored_ratio`).

    Args:
        pooled: (P, D) states stored at `stored_ratio`.
        tokens: the passage's number of tokens.
        stored_ratio: the ratio they were stored at.
        ratio: the ratio wanted.

    Returns:
        (ceil(tokens / ratio), D) in the same dtype.

    Raises:
        UsageError: `ratio` is not a multiple of `stored_ratio`.
    """
    if ratio == stored_ratio:
        return pooled
    check_ratio(stored_ratio, ratio)
    step = ratio // stored_ratio
    weights = torch.full((len(pooled), 1), float(stored_ratio), device=pooled.device)
    weights[-1] = tokens - stored_ratio * (len(pooled) - 1)
    padding = -len(pooled) % step
    sums = F.pad(pooled.float() * weights, (0, 0, 0, padding)).unflatten(0, (-1, step)).sum(1)  # (P', D)
    counts = F.pad(weights, (0, 0, 0, padding)).unflatten(0, (-1, step)).sum(1)  # (P', 1)
    return (sums / counts).to(pooled.dtype)


def check_ratio(stored_ratio: int, ratio: int) -> None:
    """Raise `UsageError` unless states stored at `stored_ratio` can serve `ratio`."""
    if ratio < 1 or ratio % stored_ratio:
        multiples = ", ".join(str(stored_ratio * step) for step in (1, 2, 4, 8))
        raise UsageError(
            f"chunk size {ratio} was asked for, but the states are stored at {stored_ratio}; "
            f"a multiple of it ({multiples}, …) works without re-indexing"
        )
