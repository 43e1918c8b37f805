from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from kalm_cache.first_stage import Candidates, z_score_fusion


def scored(*pairs: tuple[int, float]) -> Candidates:
    """A run of (number, score), best first."""
    return Candidates(np.array([n for n, _ in pairs], np.int64), np.array([s for _, s in pairs], np.float32))


def ranked(ordinals: Sequence[int]) -> Candidates:
    return scored(*((n, float(len(ordinals) - place)) for place, n in enumerate(ordinals)))


def test_scores_are_means_of_standard_scores_computed_by_hand() -> None:
    # scores 6, 4, 2: mean 4, standard deviation sqrt(8 / 3), so 1.2247, 0, -1.2247; scores 0.9, 0.1: 1 and -1
    fused = z_score_fusion([scored((10, 6.0), (20, 4.0), (30, 2.0)), scored((30, 0.9), (40, 0.1))], k=10)
    z = math.sqrt(1.5)
    # a run's own last score stands for what it does not hold: 10: z and -1; 20: 0 and -1; 30: -z and 1; 40: -z and -1
    expected = {10: (z - 1) / 2, 30: (1 - z) / 2, 20: -0.5, 40: (-z - 1) / 2}
    assert fused.ordinals.tolist() == [10, 30, 20, 40]
    assert fused.scores.tolist() == pytest.approx([expected[n] for n in fused.ordinals.tolist()], abs=1e-6)
    assert fused.scores.dtype == np.float32


def test_a_run_that_is_sure_counts_more_than_ranks_would() -> None:
    # by ranks alone 1 and 2 would tie; the first run puts 1 far ahead, the second hardly tells the two apart
    sure = scored((1, 9.0), (2, 1.0), (3, 0.9))
    unsure = scored((2, 0.51), (1, 0.50), (3, 0.10))
    assert z_score_fusion([sure, unsure], k=3).ordinals.tolist() == [1, 2, 3]


def test_the_unit_of_a_runs_scores_does_not_matter() -> None:
    cosines = [(7, 0.83), (5, 0.82), (3, 0.71), (1, 0.70)]
    lexical = scored((3, 21.5), (7, 11.0), (9, 4.0))
    plain = z_score_fusion([scored(*cosines), lexical], k=5)
    stretched = z_score_fusion([scored(*((n, 40 * s - 7) for n, s in cosines)), lexical], k=5)
    assert stretched.ordinals.tolist() == plain.ordinals.tolist()
    assert stretched.scores.tolist() == pytest.approx(plain.scores.tolist(), abs=1e-4)


def test_k_is_respected_and_a_run_of_equal_scores_decides_nothing() -> None:
    fused = z_score_fusion([scored((5, 2.0), (6, 2.0)), scored((6, 0.8), (5, 0.2))], k=1)
    assert fused.ordinals.tolist() == [6]


def test_equal_sums_are_ordered_by_smaller_number_whatever_the_order_of_the_runs() -> None:
    runs = [ranked([7, 3, 5]), ranked([5, 7, 3]), ranked([3, 5, 7])]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert z_score_fusion([runs[i] for i in order], k=3).ordinals.tolist() == [3, 5, 7]


def test_no_runs_and_empty_runs_give_no_candidates() -> None:
    assert len(z_score_fusion([], k=5)) == 0
    assert len(z_score_fusion([ranked([]), ranked([])], k=5)) == 0
    assert z_score_fusion([ranked([]), ranked([8])], k=5).ordinals.tolist() == [8]
