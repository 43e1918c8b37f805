from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.first_stage.dense.recall import cheapest, exact_neighbours, recall, synthetic_queries
from kalm_cache.first_stage.dense.spool import VectorSpool


def test_recall_is_the_mean_part_that_was_found() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 9, 1], [-1, -1, 5, 0]])
    assert recall(found, exact) == (3 + 1) / 8


def test_exact_neighbours_over_batches_are_those_of_numpy_over_all() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((50, 4)).astype(np.float32)
    queries = random.standard_normal((6, 4)).astype(np.float32)
    found = exact_neighbours(queries, [vectors[:3], vectors[3:20], vectors[20:]], 5)
    assert np.sort(found).tolist() == np.sort(np.argsort(-(queries @ vectors.T), axis=1)[:, :5]).tolist()


def test_the_cheapest_setting_that_reaches_the_target_is_taken_else_the_last() -> None:
    exact = np.arange(10)[None]
    found = {1: 5, 2: 8, 3: 9, 4: 10}  # how many of the ten each setting finds
    tried: list[int] = []

    def search(setting: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        tried.append(setting)
        return np.where(np.arange(10) < found[setting], np.arange(10), -1)[None]

    assert cheapest(search, exact, [1, 2, 3, 4], target=0.85) == (3, 0.9)
    assert tried == [1, 2, 3]
    assert cheapest(search, exact, [1, 2], target=0.85) == (2, 0.8)


def test_sampled_queries_are_as_near_to_their_passages_as_to_their_noise(tmp_path: Path) -> None:
    vectors = np.zeros((300, 64), np.float32)
    vectors[:, 0] = 2
    vectors[0] = 0
    with VectorSpool(tmp_path, 64) as spool:
        spool.append(np.arange(300), vectors)
        queries = synthetic_queries(spool)
        assert np.array_equal(queries, synthetic_queries(spool))
    assert queries.shape == (256, 64)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, rtol=1e-5)
    # two vectors of equal length at right angles: the cosine between one and their sum is sqrt(1/2)
    assert queries[1:, 0].mean() == pytest.approx(0.5**0.5, abs=0.02)
