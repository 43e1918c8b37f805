"""The layout of heads: how a product's columns split into heads, where each is written, and its rotation (RoPE).

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """One kind of heads (queries, keys or values) in a product's columns, and the buffer that they are written to.

    out: (N, K, slots, G, E), contiguous, in the run's dtype (G = 1 for keys and values).
    slot: (R,) int64; row i goes to slot `slot[i] % slots` of sequence `slot[i] // slots`.
    weight: (E,) float32, of the heads' norm; `None` = not normalised and not rotated (values).
    """

    out: Tensor
    slot: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of rows. cos, sin (length, E / 2) float32; position (R,) int64."""

    cos: Tensor
    sin: Tensor
    position: Tensor

    def at(self, rows: Tensor) -> Rope:
        """The positions of some rows."""
        return Rope(self.cos, self.sin, self.position[rows])

    def rotate(self, x: Tensor) -> Tensor:
        """x (R, K, G, E) float32 in the half-split layout: (x₁·cos − x₂·sin, x₂·cos + x₁·sin)."""
        # all heads of a token turn by the same angles
        cos, sin = self.cos[self.position][:, None, None], self.sin[self.position][:, None, None]  # (R, 1, 1, E / 2)
        # coordinate i turns with i + E / 2, as in the reference's `rotate_half`; RoFormer pairs neighbours
        first, second = x.chunk(2, dim=-1)  # (R, K, G, E / 2) each
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
