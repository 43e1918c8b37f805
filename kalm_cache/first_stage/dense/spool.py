"""Vectors on their way into an index: on disk, read in batches, however many there are. Knows nothing of FAISS."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

BATCH_ROWS = 8192


class VectorSpool:
    """Rows of float32 in a nameless file, so that a killed build leaves nothing. Use as a context manager."""

    def __init__(self, folder: Path, dimension: int) -> None:
        self.dimension = dimension
        self._ordinals = array("q")
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> VectorSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ordinals)

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """The ordinal of each row (n,)."""
        return np.array(self._ordinals, np.int64)

    def append(self, ordinals: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Ordinals (n,) and vectors (n, E). Raises `ValueError` where these do not fit together, and `OSError`."""
        if vectors.shape != (len(ordinals), self.dimension):
            raise ValueError(f"{len(ordinals)} ordinals with vectors of shape {vectors.shape}, width {self.dimension}")
        self._ordinals.frombytes(np.ascontiguousarray(ordinals, np.int64).tobytes())
        self._file.write(np.ascontiguousarray(vectors, np.float32).tobytes())

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """All rows in order, (<= BATCH_ROWS, E) at a time."""
        for start in range(0, len(self), BATCH_ROWS):
            yield self._read(start, min(BATCH_ROWS, len(self) - start))

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows (m,) by position, ascending -> (m, E)."""
        picked = np.empty((len(rows), self.dimension), np.float32)
        starts = np.searchsorted(rows, np.arange(0, len(self) + BATCH_ROWS, BATCH_ROWS))  # of each batch among `rows`
        for batch, vectors in enumerate(self.batches()):
            here = slice(starts[batch], starts[batch + 1])
            picked[here] = vectors[rows[here] - batch * BATCH_ROWS]
        return picked

    def _read(self, start: int, rows: int) -> NDArray[np.float32]:
        self._file.seek(start * self.dimension * 4)
        return np.frombuffer(self._file.read(rows * self.dimension * 4), np.float32).reshape(rows, self.dimension)
