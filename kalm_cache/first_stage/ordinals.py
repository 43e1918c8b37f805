"""Ordinals → rows of an index. Knows nothing of what the rows hold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError


class OrdinalRows:
    """The row of each ordinal. Ascending ordinals, which a store gives, are searched in place, without a copy."""

    def __init__(self, ordinals: NDArray[np.int64]) -> None:
        """`ordinals` (n,) int64, distinct; may be memory-mapped."""
        ascending = bool((ordinals[1:] > ordinals[:-1]).all())
        self._order = None if ascending else np.argsort(ordinals)
        self._sorted = ordinals if self._order is None else ordinals[self._order]

    def known(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of those of `ordinals` that the index has, in their order."""
        rows, present = self._find(ordinals)
        return rows[present]

    def require(self, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows (m,) of `ordinals` (m,). Raises `StoreError` where the index does not have one."""
        rows, present = self._find(ordinals)
        if not present.all():
            missing = ordinals[~present]
            raise StoreError(f"{len(missing)} ordinals are not in the index, such as {missing[:5].tolist()}")
        return rows

    def _find(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if not len(self._sorted):
            return np.zeros(len(ordinals), np.int64), np.zeros(len(ordinals), np.bool_)
        places = np.minimum(np.searchsorted(self._sorted, ordinals), len(self._sorted) - 1)
        present = self._sorted[places] == ordinals
        return (places if self._order is None else self._order[places]).astype(np.int64), present
