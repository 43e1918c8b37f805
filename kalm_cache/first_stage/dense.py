"""Exact inner-product search over passage vectors, in FAISS. Knows nothing of texts or models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.durable import publish_file
from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage.candidates import Candidates, best_first, no_candidates

FILE_NAME = "dense.faiss"


class DenseIndex:
    """A FAISS `IndexIDMap2(IndexFlatIP)`, held in memory. Searches may run in several threads."""

    def __init__(self, index: Any, threads: int) -> None:
        self._index = index
        self._threads = threads

    @staticmethod
    def build(
        batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], dimension: int, folder: Path
    ) -> DenseIndex:
        """Write `folder/dense.faiss` from batches of numbers (n,) int64 and vectors (n, E) float32, and return it.

        All vectors are in memory until they are written: 4 E bytes for each passage.

        Raises:
            StoreError: a number occurs twice, or the file cannot be written.
        """
        import faiss

        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        for numbers, vectors in batches:
            if len(numbers):
                index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(numbers, np.int64))
        _check_distinct(faiss.vector_to_array(index.id_map))
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{FILE_NAME}.building"
        try:
            faiss.write_index(index, str(written))
        except RuntimeError as exc:
            raise StoreError(f"{written}: cannot be written: {exc}") from exc
        publish_file(written, folder / FILE_NAME)
        return DenseIndex(index, threads=1)

    @staticmethod
    def open(folder: Path, threads: int = 1) -> DenseIndex:
        """Read `folder/dense.faiss` into memory; each search uses at most `threads` threads of its own.

        Raises:
            StoreError: the file is missing or damaged.
        """
        import faiss

        path = folder / FILE_NAME
        try:
            return DenseIndex(faiss.read_index(str(path)), threads)
        except RuntimeError as exc:
            raise StoreError(f"{path} cannot be read; run kalm-cache verify: {exc}") from exc

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a dense index was built in `folder`."""
        return (folder / FILE_NAME).is_file()

    @property
    def ntotal(self) -> int:
        """How many passages the index holds."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """E, the width of the vectors."""
        return int(self._index.d)

    def search(self, vectors: NDArray[np.float32], k: int) -> list[Candidates]:
        """Vectors (q, E) -> one list for each, of the `k` largest inner products (fewer in a smaller index).

        A zero vector is as near to every passage as to any other, and finds none.

        Raises:
            IndexMismatchError: the vectors are not as wide as the index.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise IndexMismatchError(
                f"query vectors have shape {vectors.shape}, the index expects (n, {self.dimension}): "
                "open it with the embedder that built it, or index the corpus again"
            )
        k = min(k, self.ntotal)
        if k == 0 or len(vectors) == 0:
            return [no_candidates() for _ in vectors]
        import faiss

        others = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._threads)  # OpenMP keeps this for each calling thread: set it every time
        try:
            scores, numbers = self._index.search(np.ascontiguousarray(vectors, np.float32), k)  # (q, k) each
        finally:  # torch, where it was imported before faiss, shares this OpenMP: its own work would keep the limit
            faiss.omp_set_num_threads(others)
        return [
            best_first(row_numbers, row, k) if vector.any() else no_candidates()
            for vector, row_numbers, row in zip(vectors, numbers, scores, strict=True)
        ]


def _check_distinct(numbers: NDArray[np.int64]) -> None:
    repeated = len(numbers) - len(np.unique(numbers))
    if repeated:
        raise StoreError(f"{repeated} of {len(numbers)} document numbers are not distinct; index the corpus again")
