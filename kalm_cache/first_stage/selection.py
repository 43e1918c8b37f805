"""The passages that a search may return. Knows nothing of filters, and nothing of how an index skips the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Selection:
    """Some ordinals (m,), of one or several indexes. One is made for a search and handed to every index of it."""

    def __init__(self, ordinals: NDArray[np.int64]) -> None:
        self.ordinals = ordinals
        self._table = np.zeros(int(ordinals.max(initial=-1)) + 2, np.bool_)  # the last is of all that are higher
        self._table[ordinals] = True

    def mask(self, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of an index's ordinals (n,) is selected."""
        return np.asarray(self._table[np.minimum(ordinals, len(self._table) - 1)], np.bool_)
