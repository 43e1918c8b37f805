"""Products of int8 matrices, exact on every processor. Knows nothing of scales.

Letters in shapes: `kalm_cache.model`; here D is the width of any product's input.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

EXACT_COLUMNS = 1024  # 127² · 1024 < 2^24: every partial sum of so many products is a whole number that float32 holds


def multiply_int8(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x · weightᵀ without rounding: x (R, D) int8, weight (O, D) int8 -> (R, O) int32, in `out` where it is given."""
    # `_int_mm` takes its second matrix as (D, O): a transposed view
    if x.is_cuda or has_int8_products():
        return torch._int_mm(x, weight.t()) if out is None else torch._int_mm(x, weight.t(), out=out)
    out = x.new_empty(len(x), len(weight), dtype=torch.int32) if out is None else out
    out.zero_()  # it may hold an earlier product
    for x_part, weight_part in zip(x.split(EXACT_COLUMNS, 1), weight.split(EXACT_COLUMNS, 1), strict=True):
        out += (x_part.float() @ weight_part.float().t()).to(torch.int32)  # (R, D') · (D', O)
    return out


@functools.cache
def has_int8_products() -> bool:
    """Whether `torch._int_mm` is fast and exact on this CPU.

    torch multiplies int8 by oneDNN where the processor has AVX-512 VNNI (pytorch pull request 136942). Elsewhere a
    plain loop does it, some fifty times slower than float32. oneDNN that may not use VNNI (`ONEDNN_MAX_CPU_ISA`) adds
    pairs of products in 16 bits, which saturate.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    if capabilities.get("architecture") == "x86_64" and not capabilities.get("avx512_vnni"):
        return False
    largest = torch.full((32, 64), 127, dtype=torch.int8)  # the largest values: sums of pairs saturate
    return bool((torch._int_mm(largest, largest.t()) == 127 * 127 * 64).all())
