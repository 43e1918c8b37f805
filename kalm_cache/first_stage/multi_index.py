"""Several indexes of one kind, searched as one. Knows nothing of what they hold.

Dense scores of several indexes compare: they are inner products, up to the rounding of 8-bit vectors. BM25 scores
depend on the collection: they compare where the index of additions was built with `statistics_of` the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.candidates import Candidates, no_candidates, top_candidates
from kalm_cache.first_stage.selection import Selection

Queries = TypeVar("Queries", contravariant=True)


class Searchable(Protocol[Queries]):
    """An index: `DenseIndex` takes vectors, `BM25Index` texts."""

    def search(self, queries: Queries, k: int, /) -> list[Candidates]:
        """One list for each query, of its `k` best."""

    def excluding(self, ordinals: NDArray[np.int64], /) -> Searchable[Queries]:
        """The same index without some documents."""

    def selecting(self, selection: Selection, /) -> Searchable[Queries]:
        """The same index with some documents alone, as if it held no others."""


class MultiIndex(Generic[Queries]):
    """Indexes without a common ordinal, excluded ones aside."""

    def __init__(self, indexes: Sequence[Searchable[Queries]]) -> None:
        self._indexes = indexes

    def search(self, queries: Queries, k: int, /) -> list[Candidates]:
        """One list for each query, of the `k` best in all indexes."""
        by_index = [index.search(queries, k) for index in self._indexes]
        return [merge(runs, k) for runs in zip(*by_index, strict=True)]

    def excluding(self, ordinals: NDArray[np.int64], /) -> MultiIndex[Queries]:
        """The same indexes without some documents."""
        return MultiIndex([index.excluding(ordinals) for index in self._indexes])

    def selecting(self, selection: Selection, /) -> MultiIndex[Queries]:
        """The same indexes with some documents alone."""
        return MultiIndex([index.selecting(selection) for index in self._indexes])


def merge(runs: Sequence[Candidates], k: int) -> Candidates:
    """The `k` highest scores of several lists over different documents, equal scores by ordinal."""
    if not runs:
        return no_candidates()
    ordinals = np.concatenate([run.ordinals for run in runs])
    return top_candidates(ordinals, np.concatenate([run.scores for run in runs]), k)
