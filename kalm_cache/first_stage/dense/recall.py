"""How many of the exact 100 best an approximate index finds, and the cheapest setting that finds enough of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.first_stage.dense.faiss_types import SEED, Vectors, sample_rows

DEPTH = 100
QUERIES = 256
TARGET = 0.97


def synthetic_queries(spool: Vectors) -> NDArray[np.float32]:
    """Stand-ins for queries (q, E): sampled passages plus noise as long as they are, scaled to length 1.

    Passages themselves are found too easily: with 360,535 real ones in 1,024 clusters, recall@100 at nprobe 16, 64
    and 128 was 0.905, 0.972, 0.983 for passages, 0.875, 0.960, 0.978 for these, 0.886, 0.962, 0.978 for real queries.
    """
    vectors = spool.rows(sample_rows(len(spool), QUERIES))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)  # 0 for a passage without known tokens
    noise = np.random.default_rng(SEED).standard_normal(vectors.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    queries = vectors + noise * np.where(lengths > 0, lengths, 1)
    return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)


def exact_neighbours(
    queries: NDArray[np.float32], batches: Iterable[NDArray[np.float32]], depth: int
) -> NDArray[np.int64]:
    """Positions (q, depth) of the largest inner products over all batches, in no order."""
    import faiss

    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    start = 0
    for vectors in batches:
        near, positions = faiss.knn(queries, vectors, min(depth, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, rows = np.hstack([scores, near]), np.hstack([rows, positions + start])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        start += len(vectors)
    return rows


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """The mean part of each row of `exact` that is in the same row of `found`."""
    hits = sum(len(np.intersect1d(some, all_)) for some, all_ in zip(found, exact, strict=True))
    return hits / exact.size


def cheapest(
    search: Callable[[int], NDArray[np.int64]], exact: NDArray[np.int64], ladder: Sequence[int], target: float = TARGET
) -> tuple[int, float]:
    """The first setting of `ladder` whose recall reaches `target`, and its recall; the last one where none does."""
    for setting in ladder:
        found = recall(search(setting), exact)
        if found >= target:
            break
    return setting, found
