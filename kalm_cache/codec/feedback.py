"""Rounding by what margins mind: the error of each value is made up for in the values that are not yet rounded.

A decoder looks at states in few directions. The sensitivity S (D, D) of a checkpoint is the mean of g·gᵀ over the
gradients g of margins by pooled states, so that an error e costs a margin about eᵀ·S·e, squared. Rounding coordinate by
coordinate, each error carried into the later ones as S asks, takes it into directions that do not matter (LDLQ: Chee et
al., "QuIP", arXiv 2307.13304; GPTQ, arXiv 2210.17323). It is the encoder's business alone: codes decode as before.

Legend: n rows, D state width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

DAMPING = 0.01  # of S's mean on its diagonal: what was never seen to matter may matter a little
_BLOCK = 32  # coordinates rounded before their errors reach the later blocks, in one product


def error_feedback(sensitivity: Float64) -> Float64:
    """S (D, D), symmetric, in the coordinates that are rounded -> how much of each error every later one takes."""
    width = len(sensitivity)
    damped = sensitivity + DAMPING * (np.trace(sensitivity) / width or 1.0) * np.eye(width)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T  # S⁻¹ = upperᵀ · upper
    return np.ascontiguousarray(upper / np.diag(upper)[:, None])


def round_with_feedback(
    values: Float64, feedback: Float64, nearest: Callable[[Float64, int], tuple[Float64, NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """(n, D) -> codes (n, D). `nearest`: column i of all rows -> what it rounds to, and the codes of that."""
    rest, width = values.copy(), values.shape[1]
    codes, errors = np.empty(values.shape, np.uint8), np.empty(values.shape)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        for i in range(start, stop):
            rounded, codes[:, i] = nearest(rest[:, i], i)
            errors[:, i] = rest[:, i] - rounded
            rest[:, i + 1 : stop] -= errors[:, i, None] * feedback[i, i + 1 : stop]
        rest[:, stop:] -= errors[:, start:stop] @ feedback[start:stop, stop:]
    return codes
