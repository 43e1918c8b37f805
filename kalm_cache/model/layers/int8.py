"""Products of int8 matrices, exact on every processor, and which of three ways multiplies them here.

Knows nothing of scales. Letters in shapes: `kalm_cache.model`; here D is the width of any product's input.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.errors import UsageError
from kalm_cache.model.kernels import CHOICE, choose_kernels
from kalm_cache.model.kernels.native import NativeKernels
from kalm_cache.model.precision import cpu_capabilities

AMX = "AMX"  # as the native kernels name it. torch asks oneDNN for its older GEMM, two to four times as slow with AMX
EXACT_COLUMNS = 1024  # 127² · 1024 < 2^24: every partial sum of so many products is a whole number that float32 holds
WAY_OUT = f"take dtype float32; to go on with an index that was built in int8, set {CHOICE}=torch: exact, but slower"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Int8Products:
    """One way to multiply: `multiply(x, weight, out)` writes x · weightᵀ, (R, D) · (O, D)ᵀ int8, to out (R, O) int32.

    problem: why float32 is the faster dtype with it; empty where int8 is.
    """

    name: str
    multiply: Callable[[Tensor, Tensor, Tensor], object]
    problem: str = ""


def multiply_int8(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x · weightᵀ without rounding: x (R, D) int8, weight (O, D) int8 -> (R, O) int32, in `out` where it is given."""
    out = x.new_empty(len(x), len(weight), dtype=torch.int32) if out is None else out
    products = TORCH if x.is_cuda else int8_products()
    products.multiply(x, weight, out)
    return out


@functools.cache
def int8_products() -> Int8Products:
    """How this process multiplies int8 on the CPU: by torch where that is fast and exact, and no AMX; else natively."""
    kernels = choose_kernels(torch.device("cpu"), torch.float32)
    instructions = kernels.int8_instructions if isinstance(kernels, NativeKernels) else None
    if instructions != AMX and _torch_is_fast() and _torch_is_exact():
        return TORCH
    if not isinstance(kernels, NativeKernels):
        return Int8Products("float32", _in_float32, "int8 needs AVX-512 VNNI, or the native kernels and a C++ compiler")
    capabilities = cpu_capabilities()
    problem = ""
    if instructions == "plain":
        problem = "this processor has neither AVX2 nor VNNI"
    elif instructions == "AVX2" and capabilities.get("avx512_f") and not capabilities.get("avx512_vnni"):
        problem = "this processor has AVX-512 without VNNI, and multiplies no more of int8 than of float32"
    return Int8Products(f"native, {instructions}", kernels.multiply_int8, problem)


def require_fast_int8() -> None:
    """Refuse int8 where float32 is faster; `KALM_CACHE_KERNELS=torch` makes that a warning.

    Raises:
        UsageError: int8 does not pay here: why, and what to do.
    """
    if not (problem := int8_products().problem):
        return
    if os.environ.get(CHOICE) != "torch":
        raise UsageError(f"dtype int8 is slower than float32 here: {problem}; {WAY_OUT}")
    logger.warning("dtype int8 is slower than float32 here: %s", problem)


def _by_torch(x: Tensor, weight: Tensor, out: Tensor) -> None:
    torch._int_mm(x, weight.t(), out=out)  # it takes its second matrix as (D, O): a transposed view


def _in_float32(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """The slow way, which the others are tested by."""
    out.zero_()  # it may hold an earlier product
    for x_part, weight_part in zip(x.split(EXACT_COLUMNS, 1), weight.split(EXACT_COLUMNS, 1), strict=True):
        out += (x_part.float() @ weight_part.float().t()).to(torch.int32)  # (R, D') · (D', O)


TORCH = Int8Products("oneDNN", _by_torch)


def _torch_is_fast() -> bool:
    """torch multiplies int8 by oneDNN where the processor has AVX-512 VNNI (pytorch pull request 136942).

    With AMX, oneDNN takes its tiles, too. Elsewhere a plain loop does it, some fifty times slower than float32.
    """
    return bool(cpu_capabilities().get("avx512_vnni"))


def _torch_is_exact() -> bool:
    """oneDNN that may not use VNNI (`ONEDNN_MAX_CPU_ISA`) adds pairs of products in 16 bits, which saturate."""
    largest = torch.full((32, 64), 127, dtype=torch.int8)  # the largest values: sums of pairs saturate
    return bool((torch._int_mm(largest, largest.t()) == 127 * 127 * 64).all())
