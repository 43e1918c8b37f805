"""The files of a BM25 index, memory-mapped, and the postings of some of its documents for another index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kalm_cache.first_stage.bm25.analysis import PLAIN, Analysis
from kalm_cache.first_stage.bm25.postings import DATA_NAME, INDICES_NAME, INDPTR_NAME, LENGTHS_NAME, TIMES_NAME
from kalm_cache.foreign_files import STRICT, Count, checked_fields, read_json_object
from kalm_cache.storage.arrays.rows import load_row
from kalm_cache.storage.arrays.vocabulary import Vocabulary, decode_term

ORDINALS_NAME = "numbers.npy"  # its name on disk from the first version
INFO_NAME = "bm25.json"
BLOCK_POSTINGS = 1 << 20
K1 = 1.2
B = 0.75


@dataclass(frozen=True, slots=True)
class BM25Info:
    """What `bm25.json` says."""

    analysis: str
    documents: Count
    mean_length: Annotated[float, Field(ge=0)]
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class TermCounts:
    """The counts behind the scores: each document's length (n,) in terms, and each posting's term frequency (m,).

    An index of an earlier version has none.
    """

    lengths: NDArray[np.int32]
    times: NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class BM25Files:
    """The ordinals (n,) of its documents, and the postings of each term."""

    ordinals: NDArray[np.int64]
    vocabulary: Vocabulary
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    data: NDArray[np.float32]
    mean_length: float
    counted: TermCounts | None
    analysis: Analysis = PLAIN

    def postings_of(
        self, rows: NDArray[np.int64], term_ids: dict[str, int], *, keep_scores: bool
    ) -> Iterator[NDArray[np.int32]]:
        """The postings of some documents, as blocks for `PostingsWriter.add_counted`: (3, m), with scores (4, m).

        Args:
            rows: the documents (r,), ascending; a block names a document by its position in `rows`.
            term_ids: gets an id for each term that it does not have yet.
            keep_scores: whether the bits of the scores are the fourth row.
        """
        assert self.counted is not None
        places = np.full(len(self.ordinals), -1, np.int32)
        places[rows] = np.arange(len(rows), dtype=np.int32)
        for start in range(0, len(self.indices), BLOCK_POSTINGS):
            end = min(start + BLOCK_POSTINGS, len(self.indices))
            positions = places[self.indices[start:end]]  # -1: of a document that is not asked for
            wanted = np.flatnonzero(positions >= 0)
            ids = self._ids(self.terms_of(start, end)[wanted], term_ids)
            block: list[NDArray[Any]] = [ids, positions[wanted], self.counted.times[start:end][wanted]]
            if keep_scores:
                block.append(self.data[start:end][wanted].view(np.int32))
            yield np.stack(block).astype(np.int32)

    def terms_of(self, start: int, end: int) -> NDArray[np.int64]:
        """The term of each of the postings from `start` to `end`."""
        first, last = np.searchsorted(self.indptr, start, "right") - 1, np.searchsorted(self.indptr, end)
        bounds = np.clip(self.indptr[first : last + 1], start, end)
        return np.repeat(np.arange(first, last), np.diff(bounds))

    def _ids(self, terms: NDArray[np.int64], term_ids: dict[str, int]) -> NDArray[np.int64]:
        distinct, places = np.unique(terms, return_inverse=True)
        names = (decode_term(self.vocabulary[int(term)]) for term in distinct)
        ids = np.array([term_ids.setdefault(name, len(term_ids)) for name in names], np.int64)
        return ids[places]


def load(path: Path, *, mapped: bool) -> BM25Files:
    """Read or map the files.

    Raises:
        IndexMismatchError: the index was built with another analysis of texts.
        OSError, ValueError: a file is missing or damaged.
    """
    stored = read_json_object(path / INFO_NAME)
    analysis = Analysis.named(str(stored.get("analysis", PLAIN.name)))  # first: of another version, all may differ
    info = checked_fields(BM25Info, stored)

    def array_in(name: str, *kinds: type[np.generic]) -> NDArray[Any]:
        return load_row(path / name, kinds, mapped=mapped)

    counted = None
    if (path / TIMES_NAME).exists() or (path / LENGTHS_NAME).exists():
        counted = TermCounts(array_in(LENGTHS_NAME, np.int32), array_in(TIMES_NAME, np.uint8, np.uint16, np.uint32))
    files = BM25Files(
        array_in(ORDINALS_NAME, np.int64),
        Vocabulary.open(path, mapped=mapped),
        array_in(INDPTR_NAME, np.int64),
        array_in(INDICES_NAME, np.int32),
        array_in(DATA_NAME, np.float32),
        info.mean_length,
        counted,
        analysis,
    )
    _check_sizes(files, info.documents)
    return files


def _check_sizes(files: BM25Files, documents: int) -> None:
    if documents != len(files.ordinals):
        raise ValueError(f"it scores {documents} documents, {ORDINALS_NAME} holds {len(files.ordinals)}")
    postings, counted = len(files.indices), files.counted
    fit = len(files.indptr) == len(files.vocabulary) + 1 and files.indptr[-1] == postings == len(files.data)
    fit = fit and files.indptr[0] == 0 and bool((files.indptr[1:] >= files.indptr[:-1]).all())
    if not fit or (counted and (len(counted.lengths), len(counted.times)) != (documents, postings)):
        raise ValueError("the lengths of its files do not fit together")
