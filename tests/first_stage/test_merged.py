from __future__ import annotations

import numpy as np

from kalm_cache.first_stage import Candidates, merge


def test_the_best_of_all_lists_come_first_and_equal_scores_by_smaller_number() -> None:
    base = Candidates(np.array([4, 2, 9]), np.array([0.9, 0.5, 0.1], np.float32))
    delta = Candidates(np.array([7, 1]), np.array([0.7, 0.5], np.float32))
    merged = merge([base, delta], 4)
    assert merged.ordinals.tolist() == [4, 7, 1, 2]
    assert merged.scores.tolist() == np.float32([0.9, 0.7, 0.5, 0.5]).tolist()


def test_no_lists_and_empty_lists_give_no_candidates() -> None:
    nothing = Candidates(np.empty(0, np.int64), np.empty(0, np.float32))
    assert len(merge([], 3)) == 0
    assert len(merge([nothing, nothing], 3)) == 0
