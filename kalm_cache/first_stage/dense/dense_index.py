"""Inner-product search over passage vectors, in FAISS: exact or approximate. Knows nothing of texts or models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage.candidates import Candidates, no_candidates, top_candidates
from kalm_cache.first_stage.dense.faiss_layout import check_length
from kalm_cache.first_stage.dense.faiss_types import (
    FAISS_CLASSES,
    DenseChoice,
    DenseType,
    Vectors,
    choose_type,
    faiss_extension,
    faiss_threads,
    fill_index,
    parameter_ladder,
    search_parameters,
    trained_index,
)
from kalm_cache.first_stage.dense.filtered import filtered_search
from kalm_cache.first_stage.dense.recall import DEPTH, cheapest, exact_neighbours, synthetic_queries
from kalm_cache.first_stage.dense.spool import BATCH_ROWS, VectorSpool
from kalm_cache.first_stage.normalisation import NORMALISATION
from kalm_cache.first_stage.ordinals import OrdinalRows
from kalm_cache.first_stage.selection import Selection
from kalm_cache.foreign_files import STRICT, Count, checked_fields, read_json
from kalm_cache.process.openmp import survive_forks
from kalm_cache.process.system import explained, one_line, refused
from kalm_cache.storage.durable import publish_file

FILE_NAME = "dense.faiss"
INFO_NAME = "dense.json"
TIES = (8, 128, 2048)  # passages that may score as the last one; more of them are as likely to be left out as another


@dataclass(frozen=True, slots=True)
class DenseInfo:
    """What `dense.json` says: type, passages, the search parameter, and the recall it had in `queries` sampled ones.

    `parameter` is `nprobe` of an ivf, `efSearch` of an hnsw, and 0 for flat, whose recall is 1 by definition. `texts`
    names the normal form of the texts whose vectors these are; earlier versions embedded them as they came.
    """

    type: DenseType
    passages: Count
    parameter: Count = 0
    recall_at_100: Annotated[float, Field(ge=0, le=1)] = 1.0
    queries: Count = 0
    texts: str = ""
    __pydantic_config__ = STRICT

    def of(self, passages: int) -> DenseInfo:
        """The same of a shard with so many passages: what was measured holds for all shards together."""
        return replace(self, passages=passages)


class DenseIndex:
    """A FAISS index and the ordinal of each of its rows, memory-mapped. Searches may run in several threads."""

    def __init__(
        self, index: Any, threads: int, info: DenseInfo | None = None, allowed: NDArray[np.bool_] | None = None
    ) -> None:
        """`allowed` (n,): rows that searches may return; `None` = all."""
        self._index = index
        self._threads = threads
        self.info = info or DenseInfo("flat", int(index.ntotal))
        self._rows: OrdinalRows | None = None
        self._allowed = allowed
        self._searchable = int(index.ntotal) if allowed is None else int(np.count_nonzero(allowed))

    @staticmethod
    def build(
        batches: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
        dimension: int,
        folder: Path,
        dense_index: DenseChoice = "auto",
        threads: int = 1,
    ) -> DenseIndex:
        """Write `folder/dense.faiss` and `dense.json` from batches of ordinals (n,) and vectors (n, E), and open it.

        The vectors wait in a nameless file in `folder`. In memory are what the index holds: 4 E bytes a passage if
        flat, E otherwise, and a sample. The same vectors make the same bytes, but for an hnsw built in several threads.

        Args:
            batches: read once.
            dimension: E.
            folder: is made if it is not there.
            dense_index: `auto` = by the number of passages, see `faiss_types`.
            threads: how many FAISS may use.

        Raises:
            StoreError: an ordinal occurs twice, or a file cannot be written.
            UsageError: there is no such type.
        """
        choose_type(dense_index, 0)  # refuses an unknown one before any work
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with VectorSpool(folder, dimension) as spool, faiss_threads(threads):
                for ordinals, vectors in batches:
                    spool.append(ordinals, vectors)
                _check_distinct(spool.ordinals)
                kind = choose_type(dense_index, len(spool))
                index = fill_index(trained_index(kind, spool), spool.ordinals, spool.batches())

                def search(parameter: int, queries: NDArray[np.float32], depth: int) -> NDArray[np.int64]:
                    found = index.index.search(queries, depth, params=search_parameters(kind, parameter))
                    return np.asarray(found[1], np.int64)

                publish(index, measure(search, kind, spool), folder)
        except OSError as exc:
            raise StoreError(f"{folder / FILE_NAME}: cannot be written: {explained(exc, folder)}") from exc
        return DenseIndex.open(folder)

    @staticmethod
    def open(folder: Path, threads: int = 1) -> DenseIndex:
        """Map `folder/dense.faiss` into memory; each search uses at most `threads` threads of its own.

        Raises:
            StoreError: a file is missing or damaged.
        """
        import faiss

        survive_forks(faiss_extension())
        path = folder / FILE_NAME
        try:
            check_length(path)
            # RuntimeError is FAISS's, MemoryError a damaged length's
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            return DenseIndex(index, threads, _read_info(folder, index))
        except (RuntimeError, MemoryError, OSError, ValueError, TypeError, AttributeError) as exc:
            raise StoreError(f"{path} cannot be read; {refused(exc, path)}") from exc

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a dense index was built in `folder`."""
        return (folder / FILE_NAME).is_file()

    @property
    def ntotal(self) -> int:
        """How many passages the index holds, excluded ones included."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """E, the width of the vectors."""
        return int(self._index.d)

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """The ordinal (n,) of each row."""
        import faiss

        return np.asarray(faiss.vector_to_array(self._index.id_map), np.int64)

    @property
    def exact(self) -> bool:
        """Whether `vectors` returns exactly the vectors that were put in."""
        return self.info.type == "flat"

    @property
    def normalised(self) -> bool:
        """Whether the vectors are of texts in their normal form."""
        return self.info.texts == NORMALISATION

    def excluding(self, ordinals: NDArray[np.int64]) -> DenseIndex:
        """The same index without some passages: searches go on to the next best, so `k` are found if there are."""
        allowed = np.ones(self.ntotal, np.bool_) if self._allowed is None else self._allowed.copy()
        allowed[OrdinalRows(self.ordinals).known(np.asarray(ordinals, np.int64))] = False
        return DenseIndex(self._index, self._threads, self.info, allowed)

    def selecting(self, selection: Selection) -> DenseIndex:
        """The same index with some passages alone: the best of these are found, as `filtered_search` says."""
        selected = selection.mask(self.ordinals)
        allowed = selected if self._allowed is None else selected & self._allowed
        return DenseIndex(self._index, self._threads, self.info, allowed)

    def search(self, vectors: NDArray[np.float32], k: int) -> list[Candidates]:
        """Vectors (q, E) -> one list for each, of the `k` largest inner products (fewer in a smaller index).

        A zero vector, of a query without known tokens, gets an empty list: all passages are equally near to it.

        Raises:
            IndexMismatchError: the vectors are not as wide as the index.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise IndexMismatchError(
                f"query vectors have shape {vectors.shape}, the index expects (n, {self.dimension}): "
                "open it with the embedder that built it, or index the corpus again"
            )
        wider = -(-k // DEPTH)  # the parameter was measured for lists of 100
        k = min(k, self._searchable)
        if k == 0 or len(vectors) == 0:
            return [no_candidates() for _ in vectors]
        scores, ordinals = self._search_with_ties(np.ascontiguousarray(vectors, np.float32), k, wider)
        return [
            top_candidates(found[found >= 0], row[found >= 0], k)
            if vector.any()
            else no_candidates()  # -1: no more found
            for vector, found, row in zip(vectors, ordinals, scores, strict=True)
        ]

    def _search_with_ties(
        self, vectors: NDArray[np.float32], k: int, wider: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and ordinals (q, k or more), best first, with what scores as the k-th: FAISS keeps any of these."""
        for more in TIES:
            depth = min(k + more, self._searchable)
            with faiss_threads(self._threads), _damage():
                scores, ordinals = self._search_to(vectors, depth, self.info.parameter * wider)
            is_complete = (
                depth == self._searchable or not ((scores[:, -1] == scores[:, k - 1]) & (ordinals[:, -1] >= 0)).any()
            )
            if is_complete:
                break
        return scores, ordinals

    def _search_to(
        self, vectors: NDArray[np.float32], depth: int, parameter: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and ordinals (q, depth), best first; -1: no more found."""
        if self._allowed is None:
            scores, ordinals = self._index.search(vectors, depth, params=search_parameters(self.info.type, parameter))
            return scores, ordinals
        scores, rows = filtered_search(self.info.type, _inner(self._index), vectors, depth, parameter, self._allowed)
        return scores, np.append(self.ordinals, -1)[rows]

    def vectors(self, ordinals: NDArray[np.int64] | Sequence[int]) -> NDArray[np.float32]:
        """Stored vectors (n, E) by ordinal: those put in if `exact`, else as rounded to 8 bits a dimension.

        Excluded passages count as stored. Not for several threads at once.

        Raises:
            StoreError: an ordinal is not in the index.
        """
        if self._rows is None:
            self._rows = OrdinalRows(self.ordinals)
            if self.info.type == "ivf":
                _inner(self._index).make_direct_map()
        rows = self._rows.require(np.asarray(ordinals, np.int64))
        if not len(rows):
            return np.empty((0, self.dimension), np.float32)
        with _damage():
            return np.asarray(self._index.index.reconstruct_batch(rows), np.float32)

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All ordinals and vectors in the order they were put in, as `build` takes them, excluded ones too."""
        ordinals = self.ordinals
        for start in range(0, len(ordinals), BATCH_ROWS):
            some = ordinals[start : start + BATCH_ROWS]
            yield some, self.vectors(some)


@contextmanager
def _damage() -> Iterator[None]:
    """What FAISS finds wrong in a file when it uses it."""
    try:
        yield
    except RuntimeError as exc:
        raise StoreError(f"a dense index is damaged; run kalm-cache verify: {one_line(exc)}") from exc


def _inner(index: Any) -> Any:
    """The index inside the `IndexIDMap`, as its own class."""
    import faiss

    return faiss.downcast_index(index.index)


def measure(
    search: Callable[[int, NDArray[np.float32], int], NDArray[np.int64]], kind: DenseType, vectors: Vectors
) -> DenseInfo:
    """The search parameter, and its recall of the exact neighbours of sampled queries.

    `search`: (parameter, queries (q, E), depth) -> the positions (q, depth) that an index over `vectors` finds.
    """
    if kind == "flat":
        return DenseInfo(kind, len(vectors), texts=NORMALISATION)
    queries = synthetic_queries(vectors)
    exact = exact_neighbours(queries, vectors.batches(), min(DEPTH, len(vectors)))
    ladder = parameter_ladder(kind, len(vectors))
    parameter, recall = cheapest(lambda parameter: search(parameter, queries, exact.shape[1]), exact, ladder)
    return DenseInfo(kind, len(vectors), parameter, round(recall, 4), len(queries), NORMALISATION)


def publish(index: Any, info: DenseInfo, folder: Path) -> None:
    """Write an index and what it is, in the place of those in `folder`. Raises `StoreError`."""
    import faiss

    written, described = folder / f"{FILE_NAME}.building", folder / f"{INFO_NAME}.building"
    described.write_text(json.dumps(asdict(info)) + "\n", encoding="utf-8")
    try:
        faiss.write_index(index, str(written))
    except RuntimeError as exc:
        raise StoreError(f"{written}: cannot be written: {explained(exc, written)}") from exc
    publish_file(described, folder / INFO_NAME)  # first: where there is an index, it is described
    publish_file(written, folder / FILE_NAME)


def _read_info(folder: Path, index: Any) -> DenseInfo:
    path = folder / INFO_NAME
    inner = _inner(index)
    if not index.id_map.size() == inner.ntotal == index.ntotal or inner.d != index.d:
        raise ValueError(f"it holds {inner.ntotal} vectors and {index.id_map.size()} ordinals")
    found = type(inner).__name__
    if not path.exists() and found == FAISS_CLASSES["flat"]:
        return DenseInfo("flat", int(index.ntotal))  # built before there were other types
    info = checked_fields(DenseInfo, read_json(path))
    if (FAISS_CLASSES.get(info.type), info.passages) != (found, index.ntotal):
        raise ValueError(f"it is an {found} of {index.ntotal} vectors, {INFO_NAME} says {info.type}, {info.passages}")
    if info.type != "flat" and not 1 <= info.parameter <= max(index.ntotal, getattr(inner, "nlist", 0)) + 2048:
        raise ValueError(f"{INFO_NAME} says parameter {info.parameter!r}")
    if info.type == "ivf":
        _check_lists(inner)
    return info


def _check_lists(index: Any) -> None:
    """FAISS looks up what a list names, unchecked: a damaged one would end the process."""
    import faiss

    lists = index.invlists
    for ordinal in range(index.nlist):
        rows = faiss.rev_swig_ptr(lists.get_ids(ordinal), lists.list_size(ordinal))
        if len(rows) and (rows.min() < 0 or rows.max() >= index.ntotal):
            raise ValueError(f"cluster {ordinal} names rows that are not there")


def _check_distinct(ordinals: NDArray[np.int64]) -> None:
    repeated = len(ordinals) - len(np.unique(ordinals))
    if repeated:
        raise StoreError(f"{repeated} of {len(ordinals)} ordinals are not distinct; index the corpus again")
