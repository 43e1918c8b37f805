"""Keys and values of an earlier run: of one passage, for the prefix cache, or of a prefix that all passages share.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Keys and values of one passage under one prompt prefix, all layers: enough to go on from, without its states.

    prefix: the L token ids that the prompt must begin with; pooled: P.
    states (layers, 2, K, L + P, E), keys first, prefix first; where int8, times `scale` (layers, 2, K, L + P) float32.
    """

    prefix: tuple[int, ...]
    pooled: int
    states: Tensor
    scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.states.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class SharedPrefixKV:
    """Keys and values of a prompt's first tokens, all layers, that are taken to be the same for all passages.

    prefix: the L token ids that the prompt must begin with.
    states (layers, 2, K, L, E), keys first, in the stream's dtype, on the decoder's device.
    """

    prefix: tuple[int, ...]
    states: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.states.nbytes


def make_prefix_kv(prefix: tuple[int, ...], pooled: int, states: Tensor, dtype: torch.dtype) -> PrefixKV:
    """`states` (layers, 2, K, L + P, E) in `dtype`; int8 has one scale for each vector."""
    if dtype is not torch.int8:
        return PrefixKV(prefix, pooled, states.to(dtype).contiguous())  # native code reads it by address
    scale = states.abs().amax(-1).float() / 127  # (layers, 2, K, L + P)
    # clamped: a vector of zeros has scale 0, and 0 · ∞ is no number
    inverse = 1 / scale.clamp(min=torch.finfo(torch.float32).tiny)
    return PrefixKV(prefix, pooled, (states * inverse.unsqueeze(-1)).round().to(torch.int8), scale)
