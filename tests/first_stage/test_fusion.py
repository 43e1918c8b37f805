from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kalm_cache.first_stage import Candidates, reciprocal_rank_fusion


def ranked(numbers: Sequence[int]) -> Candidates:
    return Candidates(np.array(numbers, np.int64), np.arange(len(numbers), 0, -1, dtype=np.float32))


def test_scores_are_sums_of_reciprocal_ranks_computed_by_hand() -> None:
    fused = reciprocal_rank_fusion([ranked([10, 20, 30]), ranked([30, 10, 40])], k=10)
    # 10: 1/61 + 1/62; 30: 1/63 + 1/61; 20: 1/62; 40: 1/63
    assert fused.numbers.tolist() == [10, 30, 20, 40]
    assert fused.scores.tolist() == pytest.approx([0.0325225, 0.0322665, 0.0161290, 0.0158730], abs=1e-7)
    assert fused.scores.dtype == np.float32


def test_the_constant_and_k_are_respected() -> None:
    fused = reciprocal_rank_fusion([ranked([5, 6])], k=1, constant=0)
    assert (fused.numbers.tolist(), fused.scores.tolist()) == ([5], [1.0])


def test_equal_sums_are_ordered_by_smaller_number_whatever_the_order_of_the_runs() -> None:
    runs = [ranked([7, 3, 5]), ranked([5, 7, 3]), ranked([3, 5, 7])]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert reciprocal_rank_fusion([runs[i] for i in order], k=3).numbers.tolist() == [3, 5, 7]


def test_no_runs_and_empty_runs_give_no_candidates() -> None:
    assert len(reciprocal_rank_fusion([], k=5)) == 0
    assert len(reciprocal_rank_fusion([ranked([]), ranked([])], k=5)) == 0
    assert reciprocal_rank_fusion([ranked([]), ranked([8])], k=5).numbers.tolist() == [8]
