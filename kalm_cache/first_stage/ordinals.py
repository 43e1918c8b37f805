"""Document numbers → positions. Knows nothing of what lies there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError


class RowsOf:
    """Where each document number stands. Sorted numbers, which a store gives, are looked up as they are."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        """`numbers` (n,) int64, distinct; may be memory-mapped."""
        ascending = bool((numbers[1:] > numbers[:-1]).all())
        self._order = None if ascending else np.argsort(numbers)
        self._sorted = numbers if self._order is None else numbers[self._order]

    def known(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of `numbers` that are there, in their order."""
        rows, there = self._find(numbers)
        return rows[there]

    def require(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions (m,) of `numbers` (m,). Raises: StoreError where one is not there."""
        rows, there = self._find(numbers)
        if not there.all():
            missing = numbers[~there]
            raise StoreError(f"{len(missing)} document numbers are not in the index, such as {missing[:5].tolist()}")
        return rows

    def _find(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self._sorted):
            return np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.bool_)
        places = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        there = self._sorted[places] == numbers
        return (places if self._order is None else self._order[places]).astype(np.int64), there
