"""Document numbers → positions. Knows nothing of what lies there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError


class RowsOf:
    """Where each document number stands. Sorted numbers, which a store gives, are looked up as they are."""

    def __init__(self, ordinals: NDArray[np.int64]) -> None:
        """`ordinals` (n,) int64, distinct; may be memory-mapped."""
        ascending = bool((ordinals[1:] > ordinals[:-1]).all())
        self._order = None if ascending else np.argsort(ordinals)
        self._sorted = ordinals if self._order is None else ordinals[self._order]

    def known(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of those of `ordinals` that are there, in their order."""
        rows, there = self._find(ordinals)
        return rows[there]

    def require(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions (m,) of `ordinals` (m,). Raises: StoreError where one is not there."""
        rows, there = self._find(ordinals)
        if not there.all():
            missing = ordinals[~there]
            raise StoreError(f"{len(missing)} document numbers are not in the index, such as {missing[:5].tolist()}")
        return rows

    def _find(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self._sorted):
            return np.zeros(len(ordinals), np.int64), np.zeros(len(ordinals), np.bool_)
        places = np.minimum(np.searchsorted(self._sorted, ordinals), len(self._sorted) - 1)
        there = self._sorted[places] == ordinals
        return (places if self._order is None else self._order[places]).astype(np.int64), there
