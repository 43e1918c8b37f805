"""The rotation that goes before int8: it spreads a row's few large numbers over all, so that one scale suits them.

x · w = (x R) · (w R) for every orthogonal R; here a Hadamard matrix over equal parts of the row (QuaRot, arXiv
2404.00456, without its random signs). Weights are rotated when they are loaded, activations by the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BLOCKS = 64  # rows.h has the same number


def rotate(x: Tensor) -> Tensor:
    """x (…, D) float32 -> x R, of the same shape."""
    width = x.shape[-1]
    blocks = min(width & -width, MAX_BLOCKS)  # the largest power of two that divides the width, up to 64
    step = width // blocks  # the Hadamard matrix mixes `blocks` equal parts of `step` numbers, as (H ⊗ I) does
    while step < width:
        first, second = x.unflatten(-1, (-1, 2, step)).unbind(-2)  # (…, pairs, step)
        x = torch.stack((first + second, first - second), dim=-2).flatten(-3)  # (…, pairs, 2, step) -> (…, D)
        step *= 2
    return x / blocks**0.5  # orthogonal: lengths and products stay
