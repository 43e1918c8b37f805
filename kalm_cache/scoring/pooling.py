"""Matryoshka embedding pooling (MEP): means of consecutive groups of states. Pure tensor code.

Legend: B batch, S passage tokens, D state width, r pooling ratio (`ratio`), P = ceil(S / r) pooled states.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def mean_pool(states: Tensor, tokens: Sequence[int], ratio: int, *, stored_ratio: int = 1) -> list[Tensor]:
    """Average every `ratio` consecutive tokens' states of each passage; a passage's last group may be shorter.

    Works on states of single tokens, and on means stored at a smaller ratio: means of equal groups nest, so a group at
    `ratio` is the mean of `ratio / stored_ratio` stored means, each weighted by its number of tokens (only a passage's
    last one can have fewer than `stored_ratio`). Exact up to rounding.

    Args:
        states: (sum of P, D), the passages' states end to end, P = ceil(tokens / stored_ratio) each.
        tokens: tokens of each passage, 1 or more.
        ratio: the ratio wanted.
        stored_ratio: the ratio of `states`; 1 = one state a token.

    Returns:
        For each passage (ceil(tokens / ratio), D) in the states' dtype; at an equal ratio, the states as they are.

    Raises:
        UsageError: `ratio` is not a multiple of `stored_ratio`.
    """
    check_ratio(stored_ratio, ratio)
    lengths = torch.tensor(tokens)
    stored, wanted = _ceil(lengths, stored_ratio), _ceil(lengths, ratio)  # pooled states of each passage
    if ratio == stored_ratio:
        return list(states.split(stored.tolist()))
    weights = torch.full((len(states),), float(stored_ratio))
    weights[stored.cumsum(0) - 1] = (lengths - stored_ratio * (stored - 1)).float()
    group = torch.arange(int(wanted.sum())) - (wanted.cumsum(0) - wanted).repeat_interleave(wanted)
    starts = (stored.cumsum(0) - stored).repeat_interleave(wanted) + group * (ratio // stored_ratio)
    sizes = (lengths.repeat_interleave(wanted) - group * ratio).clamp(max=ratio)  # tokens of each group
    # float32: half-precision sums lose digits that the mean needs
    rows, device = torch.arange(len(states)), states.device
    sums = F.embedding_bag(
        rows.to(device), states.float(), starts.to(device), mode="sum", per_sample_weights=weights.to(device)
    )
    return list((sums / sizes.to(device).unsqueeze(1)).to(states.dtype).split(wanted.tolist()))


def _ceil(tokens: Tensor, ratio: int) -> Tensor:
    return (tokens + ratio - 1) // ratio


def check_ratio(stored_ratio: int, ratio: int) -> None:
    """Raise `UsageError` unless states stored at `stored_ratio` can serve `ratio`."""
    if ratio < 1 or ratio % stored_ratio:
        multiples = ", ".join(str(stored_ratio * step) for step in (1, 2, 4, 8))
        raise UsageError(
            f"chunk size {ratio} was asked for, but the states are stored at {stored_ratio}; "
            f"a multiple of it ({multiples}, …) works without re-indexing"
        )
