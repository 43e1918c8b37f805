"""Query → candidates: dense, BM25, or both fused. Knows nothing of passages, states or the reranker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.first_stage.bm25.bm25_index import BM25Index
from kalm_cache.first_stage.candidates import Candidates
from kalm_cache.first_stage.dense.dense_index import DenseIndex
from kalm_cache.first_stage.embedders.embedder import Embedder
from kalm_cache.first_stage.fusion import fuse
from kalm_cache.first_stage.multi_index import MultiIndex, Searchable
from kalm_cache.first_stage.selection import Selection

Mode = Literal["dense", "bm25", "fused"]
FUSION_DEPTH = 100  # shorter lists would hide what is deep in one of them and deep in the other


def list_depth(k: int, mode: Mode) -> int:
    """How long the lists are that the `k` best candidates are made of."""
    return max(k, FUSION_DEPTH) if mode == "fused" else k


class FirstStage:
    """The first-stage indexes of one segment, and the embedder of its queries. Searches may run in several threads."""

    def __init__(
        self,
        dense: Searchable[NDArray[np.float32]] | None,
        bm25: Searchable[Sequence[str]] | None,
        embedder: Embedder | None,
    ) -> None:
        self._dense = dense
        self._bm25 = bm25
        self._embedder = embedder

    @staticmethod
    def open(folder: Path, embedder: Embedder | None, threads: int = 1) -> FirstStage:
        """Open whichever of the two indexes `folder` holds; without an embedder, BM25 alone.

        `threads`: how many a dense search may use.

        Raises:
            IndexMismatchError: the embedder's vectors are not as wide as the dense index, or BM25 has another analysis.
            StoreError: an index is damaged.
        """
        dense = DenseIndex.open(folder, threads) if embedder is not None and DenseIndex.exists(folder) else None
        if dense is not None and embedder is not None and dense.dimension != embedder.dimension:
            raise IndexMismatchError(
                f"the dense index in {folder} holds vectors {dense.dimension} wide, the embedder's are "
                f"{embedder.dimension} wide: open it with the embedder that built it, or index the corpus again"
            )
        return FirstStage(dense, BM25Index.open(folder) if BM25Index.exists(folder) else None, embedder)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that this index can serve."""
        single: tuple[Mode, ...] = (*(("dense",) if self._dense else ()), *(("bm25",) if self._bm25 else ()))
        return (*single, "fused") if len(single) == 2 else single

    def excluding(self, ordinals: NDArray[np.int64]) -> FirstStage:
        """The same indexes without some passages: searches go on to the next best. Opens nothing again."""
        return FirstStage(
            None if self._dense is None else self._dense.excluding(ordinals),
            None if self._bm25 is None else self._bm25.excluding(ordinals),
            self._embedder,
        )

    def selecting(self, selection: Selection) -> FirstStage:
        """The same indexes with some passages alone: the best of these are found, however many others are better."""
        return FirstStage(
            None if self._dense is None else self._dense.selecting(selection),
            None if self._bm25 is None else self._bm25.selecting(selection),
            self._embedder,
        )

    def search(self, query: str, k: int, mode: Mode) -> Candidates:
        """The `k` best candidates of one query.

        Raises:
            UsageError: the mode needs an index that was not built, or `k` is below 1.
        """
        return self.search_many([query], k, mode)[0]

    def search_many(self, queries: Sequence[str], k: int, mode: Mode) -> list[Candidates]:
        """The `k` best candidates of each query.

        Raises:
            UsageError: the mode needs an index that was not built, or `k` is below 1.
        """
        return [fuse(lists, k) for lists in self.lists(queries, k, mode)]

    def lists(self, queries: Sequence[str], k: int, mode: Mode) -> list[tuple[Candidates, ...]]:
        """What `fuse` makes the `k` best of: one list a query, or for `fused` the dense and the BM25 one.

        The lists of several parts of an index become one each (`merge`) before they are fused. Raises as `search_many`.
        """
        if k < 1:
            raise UsageError(f"k is {k}, expected at least 1")
        if mode == "dense":
            return [(found,) for found in self._search_dense(queries, k)]
        if mode == "bm25":
            return [(found,) for found in self._search_bm25(queries, k)]
        if mode == "fused":
            depth = list_depth(k, mode)
            return list(zip(self._search_dense(queries, depth), self._search_bm25(queries, depth), strict=True))
        raise UsageError(f"mode is {mode!r}, expected one of {', '.join(self.modes)}")

    def _search_dense(self, queries: Sequence[str], k: int) -> list[Candidates]:
        if self._dense is None or self._embedder is None:
            raise self._unavailable("a dense index and its embedder")
        return self._dense.search(self._embedder.embed_queries(queries), k)

    def _search_bm25(self, queries: Sequence[str], k: int) -> list[Candidates]:
        if self._bm25 is None:
            raise self._unavailable("a BM25 index")
        return self._bm25.search(queries, k)

    def _unavailable(self, needed: str) -> UsageError:
        available = ", ".join(self.modes) or "none"
        return UsageError(f"this mode needs {needed}, which was not built or opened; available modes: {available}")


class FirstStageSet(FirstStage):
    """The first stages of several segments, each without its deleted passages, as one.

    Dense lists are merged by score, and so are BM25 lists. Fusion comes after that: it sees the whole index. A query is
    embedded once.
    """

    def __init__(self, parts: Sequence[tuple[FirstStage, NDArray[np.int64]]]) -> None:
        """`parts`: segments of one embedder, each with the ordinals (m,) int64 that are deleted or replaced.

        A mode is served if every part serves it. One part at least; no two parts have a common ordinal, excluded
        ones aside.
        """
        stages = [part.excluding(excluded) if len(excluded) else part for part, excluded in parts]
        dense = [stage._dense for stage in stages if stage._dense is not None]
        bm25 = [stage._bm25 for stage in stages if stage._bm25 is not None]
        super().__init__(
            MultiIndex(dense) if len(dense) == len(stages) else None,
            MultiIndex(bm25) if len(bm25) == len(stages) else None,
            stages[0]._embedder,
        )
