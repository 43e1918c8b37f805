"""What a first stage hands to the reranker. Knows nothing of indexes, texts or models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The passages that a first stage returns for one query, best first.

    `ordinals` (k,) int64 name them in the store; `scores` (k,) float32 are comparable only within one list.
    """

    ordinals: NDArray[np.int64]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ordinals)


def top_candidates(ordinals: NDArray[np.int64], scores: NDArray[np.floating[Any]], k: int) -> Candidates:
    """The `k` highest scores. Equal scores come by ordinal, so that the same query always gives the same list."""
    if len(scores) > k:
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        high = scores >= cut  # at least k: all that tie at the cut, for the sort below to choose from
        ordinals, scores = ordinals[high], scores[high]
    order = np.lexsort((ordinals, -scores))[:k]
    return Candidates(np.asarray(ordinals[order], np.int64), np.asarray(scores[order], np.float32))


def no_candidates() -> Candidates:
    """The answer to a query that finds nothing."""
    return Candidates(np.empty(0, np.int64), np.empty(0, np.float32))
