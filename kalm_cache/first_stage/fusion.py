"""Several ranked lists → one. Knows nothing of where the lists come from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kalm_cache.first_stage.candidates import Candidates, best_first


def reciprocal_rank_fusion(runs: Sequence[Candidates], k: int, constant: int = 60) -> Candidates:
    """The `k` documents with the highest sum over runs of `1 / (constant + rank)`; ranks count from 1.

    Equal sums are ordered by smaller number. Source: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms
    Condorcet and individual Rank Learning Methods", SIGIR 2009, section 2 (which sets the constant to 60).
    """
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for run in runs:
        for rank, number in enumerate(run.numbers.tolist(), start=1):
            parts[number].append(1 / (constant + rank))
    numbers = np.fromiter(parts, np.int64, len(parts))
    # fsum: plain sums depend on the order of the runs in the last bit, and would break exact ties
    scores = np.fromiter((math.fsum(terms) for terms in parts.values()), np.float64, len(parts))
    return best_first(numbers, scores, k)
