"""Rounding with error feedback (LDLQ): each value's error is made up for in the values that are not yet rounded.

A decoder looks at states in few directions. The sensitivity S (D, D) of a checkpoint is the mean of g·gᵀ over the
gradients g of margins by pooled states: an error e moves a margin by about √(eᵀ·S·e). Values are rounded one coordinate
after the other, and each error is subtracted from the later coordinates as S asks. What is left of it points in
directions that move no margin. Sources: Chee et al., "QuIP" (LDLQ), arXiv 2307.13304; GPTQ, arXiv 2210.17323. Only the
encoder does this: codes decode as without it.

Letters in shapes: `kalm_cache.codec`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

DAMPING = 0.01  # times the mean of S's diagonal: a direction in which no margin moved may still move one a little
_BLOCK = 32  # coordinates rounded before their errors reach the later blocks, in one product


def error_feedback(sensitivity: Float64) -> Float64:
    """S (D, D), symmetric, in the coordinates that are rounded -> (D, D).

    Row i says how much of coordinate i's rounding error is added to each later coordinate.
    """
    width = len(sensitivity)
    # damped: S of few queries is singular, and its inverse is needed. `or 1.0`: S may be all zeros
    damped = sensitivity + DAMPING * (np.trace(sensitivity) / width or 1.0) * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T  # S⁻¹ = upperᵀ · upper
    # Given the error of coordinate i, the later ones that make eᵀ·S·e smallest are row i of this factor (GPTQ)
    return np.ascontiguousarray(upper / np.diag(upper)[:, None])


def round_with_feedback(
    values: Float64, feedback: Float64, nearest: Callable[[Float64, int], tuple[Float64, NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """(n, D) -> codes (n, D). `nearest`: column i of all rows -> what it rounds to, and the codes of that."""
    rest, width = values.copy(), values.shape[1]  # rest: values as far as the errors so far have changed them
    codes, errors = np.empty(values.shape, np.uint8), np.empty(values.shape)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        for i in range(start, stop):
            rounded, codes[:, i] = nearest(rest[:, i], i)
            errors[:, i] = rest[:, i] - rounded  # (n,)
            rest[:, i + 1 : stop] -= errors[:, i, None] * feedback[i, i + 1 : stop]  # (n, 1) · (block's rest,)
        rest[:, stop:] -= errors[:, start:stop] @ feedback[start:stop, stop:]  # (n, block) @ (block, later)
    return codes
