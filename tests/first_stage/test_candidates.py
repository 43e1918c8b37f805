from __future__ import annotations

import numpy as np

from kalm_cache.first_stage.candidates import top_candidates


def test_best_first_sorts_by_score_and_then_by_smaller_number() -> None:
    found = top_candidates(np.array([9, 4, 7, 1]), np.array([0.5, 0.9, 0.5, 0.1], np.float32), 3)
    assert found.ordinals.tolist() == [4, 7, 9]
    assert found.ordinals.dtype == np.int64
    assert found.scores.tolist() == np.array([0.9, 0.5, 0.5], np.float32).tolist()
    assert found.scores.dtype == np.float32


def test_a_tie_at_the_cut_keeps_the_smaller_numbers() -> None:
    found = top_candidates(np.array([50, 40, 30, 20, 10]), np.ones(5, np.float32), 2)
    assert found.ordinals.tolist() == [10, 20]


def test_fewer_documents_than_k_are_all_kept() -> None:
    assert len(top_candidates(np.array([3]), np.array([1.0]), 10)) == 1
    assert len(top_candidates(np.empty(0, np.int64), np.empty(0), 10)) == 0
