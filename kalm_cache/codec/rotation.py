"""A fixed random rotation, so that every coordinate looks Gaussian, whatever outliers the states have. Pure NumPy.

A randomised Hadamard transform (Ailon & Chazelle 2006; for quantisation: QuIP#, arXiv 2402.04396): flip signs that
never change, then multiply by ±1 matrices, H(2n) = [[H(n), H(n)], [H(n), -H(n)]] (Sylvester). A width is cut into
blocks, the largest powers of two from the left, at most `MAX_BLOCK`: 640 = 512 + 128, 1152 = 1024 + 128.

Same bits on every machine: only integers that fit the mantissa go through the products, so sums are exact in any
order, with or without fused multiply-add, whatever BLAS is underneath.

Letters in shapes: `kalm_cache.codec`.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_BLOCK = 2048  # levels of up to 2^13 summed over 2^11 coordinates stay within float32's 2^24
_DIRECT = 128  # up to here one product is faster than two
_SEED = b"kalm-cache rotation 1"
_Float = TypeVar("_Float", np.float32, np.float64)


@functools.cache
def blocks(width: int) -> tuple[slice, ...]:
    """The columns of each block: 640 -> 0:512, 512:640."""
    cut: list[slice] = []
    while (start := cut[-1].stop if cut else 0) < width:
        size = min(MAX_BLOCK, 1 << ((width - start).bit_length() - 1))  # the largest power of two that is left
        cut.append(slice(start, start + size))
    return tuple(cut)


@functools.cache
def signs(width: int) -> NDArray[np.float32]:
    """(D,) of ±1: -1 where bit i, lowest first, of SHAKE-256 over a fixed seed is set. Narrower ones are prefixes."""
    digest = hashlib.shake_256(_SEED).digest(-(-width // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8), count=width, bitorder="little")
    fixed = 1 - 2 * bits.astype(np.float32)  # 0 -> 1, 1 -> -1
    fixed.flags.writeable = False  # every caller gets the cached array itself
    return fixed


def hadamard(rows: NDArray[_Float]) -> NDArray[_Float]:
    """(n, w) integers -> (n, w) integers: each row times H(w), not divided by anything. Its own inverse, times w.

    Exact while w · max|row| ≤ 2^24 in float32, 2^53 in float64.
    """
    n, w = rows.shape
    if w <= _DIRECT:
        direct: NDArray[_Float] = rows @ _matrix(w, rows.dtype)
        return direct
    # H(w) = H(high) ⊗ H(low): two products of w·√w each in place of one of w²
    low = 1 << (w.bit_length() // 2)
    high = w // low
    inner = np.ascontiguousarray(rows).reshape(-1, low) @ _matrix(low, rows.dtype)  # (n, w) -> (n · high, low)
    outer: NDArray[_Float] = np.matmul(_matrix(high, rows.dtype), inner.reshape(n, high, low))  # (n, high, low)
    return outer.reshape(n, w)  # (n, high, low) -> (n, w)


@functools.cache
def _matrix(size: int, dtype: np.dtype[_Float]) -> NDArray[_Float]:
    matrix = np.ones((1, 1), dtype)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
