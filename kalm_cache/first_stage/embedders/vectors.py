"""Arithmetic on embedding vectors. Knows nothing of models or indexes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def l2_normalise(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Each row (n, E) divided by its length, in float32; a zero row (a text without known tokens) stays zero."""
    rows = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return np.asarray(rows / lengths, np.float32)
