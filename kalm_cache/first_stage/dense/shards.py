"""Exact dense indexes of shards -> those of the type that suits all of them together: one quantiser, trained once.

The sample that trains it, the queries that measure it and the search parameter are those of one index of all vectors,
so that an ivf of several shards finds what one ivf would. A graph (hnsw) is each shard's own: there only the
rounding to 8 bits is common.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError
from kalm_cache.first_stage.dense.dense_index import DenseIndex, measure, publish
from kalm_cache.first_stage.dense.faiss_types import (
    DenseChoice,
    choose_type,
    faiss_threads,
    fill_index,
    search_parameters,
    trained_index,
)
from kalm_cache.first_stage.dense.spool import BATCH_ROWS
from kalm_cache.process.system import explained


def convert_shards(folders: Sequence[Path], dense_index: DenseChoice, threads: int = 1) -> None:
    """Put indexes of the type for all of them in the place of exact ones; nothing is done where that is exact, too.

    In memory are E bytes a passage of all shards, 10 bytes more of each, and the sample.

    Args:
        folders: of each shard's dense index.
        dense_index: `auto` = by the number of all passages.
        threads: how many FAISS may use.

    Raises:
        StoreError: a file is damaged, or cannot be written.
    """
    vectors = ShardVectors([DenseIndex.open(folder) for folder in folders])
    kind = choose_type(dense_index, len(vectors))
    if kind == "flat":
        return
    try:
        with faiss_threads(threads):
            empty = trained_index(kind, vectors)
            filled = [fill_index(_copy(empty), ordinals, batches) for ordinals, batches in vectors.of_each_shard()]

            def search(parameter: int, queries: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
                found = [one.index.search(queries, depth, params=search_parameters(kind, parameter)) for one in filled]
                return vectors.best_positions(found, depth)

            info = measure(search, kind, vectors)
            for index, folder in zip(filled, folders, strict=True):
                publish(index, info.of(int(index.ntotal)), folder)
    except OSError as exc:
        raise StoreError(f"{folders[0]}: cannot be written: {explained(exc, folders[0])}") from exc


def _copy(index: Any) -> Any:
    import faiss

    return faiss.clone_index(index)


class ShardVectors:
    """The vectors of several exact indexes, in the order of their ordinals: rows as `VectorSpool` has them."""

    def __init__(self, shards: Sequence[DenseIndex]) -> None:
        self._shards = shards
        self.dimension = shards[0].dimension
        every = [shard.ordinals for shard in shards]
        ordinals = np.concatenate(every)
        homes = np.repeat(np.arange(len(shards), dtype=np.int32), [len(some) for some in every])
        order = np.argsort(ordinals, kind="stable")
        self.ordinals: NDArray[np.int64] = ordinals[order]
        self._homes = homes[order]  # (n,): the shard of each row
        self._positions = [np.flatnonzero(self._homes == home) for home in range(len(shards))]  # a shard's rows rise

    def __len__(self) -> int:
        return len(self.ordinals)

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows (m,) by position -> (m, E)."""
        picked = np.empty((len(rows), self.dimension), np.float32)
        for home, shard in enumerate(self._shards):
            here = np.flatnonzero(self._homes[rows] == home)
            picked[here] = shard.vectors(self.ordinals[rows[here]])
        return picked

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """All rows in order, (<= BATCH_ROWS, E) at a time."""
        for start in range(0, len(self), BATCH_ROWS):
            yield self.rows(np.arange(start, min(start + BATCH_ROWS, len(self))))

    def of_each_shard(self) -> Iterator[tuple[NDArray[np.int64], Iterator[NDArray[np.float32]]]]:
        """The ordinals and the vectors of each shard, as they were put in."""
        for shard in self._shards:
            yield shard.ordinals, (vectors for _, vectors in shard.batches())

    def best_positions(
        self, found: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]], depth: int
    ) -> NDArray[np.int64]:
        """Scores and rows (q, depth) that each shard has found, -1 = none -> the best positions (q, depth) of all."""
        scores = np.hstack([some for some, _ in found])
        every = [
            np.where(rows >= 0, np.append(places, -1)[rows], -1)
            for places, (_, rows) in zip(self._positions, found, strict=True)
        ]
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return np.asarray(np.take_along_axis(np.hstack(every), best, 1), np.int64)
