"""Norms and the MLP's gate, a row at a time, in float32 whatever is stored. Each is `Kernels`' method of that name.

Letters in shapes: `kalm_cache.model`. A block is a power of two, as Triton asks: lanes beyond the width are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def inverse_rms(x, width, eps):
    """1 / √(mean of squares + eps) of one row; lanes beyond its width hold zeros."""
    return 1 / tl.sqrt(tl.sum(x * x, 0) / width + eps)


@triton.jit
def norm(x, weight, out, eps, width, BLOCK: tl.constexpr):
    """out = x / rms(x) · weight. x, out (R, D); weight (D,) float32; a program a row."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = lane < width
    values = tl.load(x + row * width + lane, mask=inside, other=0).to(tl.float32)
    factors = tl.load(weight + lane, mask=inside, other=0)
    tl.store(out + row * width + lane, values * inverse_rms(values, width, eps) * factors, mask=inside)


@triton.jit
def add_norm(x, branch, weight, next_weight, out, eps, width, BLOCK: tl.constexpr):
    """x += norm(branch, weight), in place, and out = norm(x, next_weight). x, branch, out (R, D); a program a row.

    The sum is not rounded before the second norm: one pass reads and writes the residual stream.
    """
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = lane < width
    added = tl.load(branch + row * width + lane, mask=inside, other=0).to(tl.float32)
    factors = tl.load(weight + lane, mask=inside, other=0)
    total = tl.load(x + row * width + lane, mask=inside, other=0).to(tl.float32)
    total += added * inverse_rms(added, width, eps) * factors
    tl.store(x + row * width + lane, total, mask=inside)
    next_factors = tl.load(next_weight + lane, mask=inside, other=0)
    tl.store(out + row * width + lane, total * inverse_rms(total, width, eps) * next_factors, mask=inside)


@triton.jit
def gated_gelu(gate_up, out, width, BLOCK: tl.constexpr):
    """out = gelu_tanh(gate) · up. gate_up (R, 2·I), gates first; out (R, I); a program a row and block of columns."""
    blocks = tl.cdiv(width, BLOCK)
    row, column = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0).to(tl.float32)
    # gelu_tanh(x) = x/2 · (1 + tanh u) = x / (1 + e^(−2u)), u = √(2/π) · (x + 0.044715 x³)
    u2 = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    tl.store(out + row * width + column, gate / (1 + tl.exp(-u2)) * up, mask=inside)
