"""Term occurrences → BM25 scores, sorted by term, on disk; `bm25_index.py` adds a query's up. Terms are integers.

The layout is a compressed sparse column matrix with a column for each term: `indptr` (v + 1,) int64, `indices` int32
(documents) and `data` float32 (scores). Two more arrays hold the counts behind the scores, so that another index can
reuse documents without their texts: `times` unsigned, the term frequency of each posting, and `lengths` (n,) int32, the
terms of each document. Occurrences are gathered block by block in a nameless file, and placed in a second pass, when
the document frequency of each term is known. Memory: a block, 4 bytes a document, 24 a term.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

INDPTR_NAME = "indptr.npy"
INDICES_NAME = "indices.npy"
DATA_NAME = "data.npy"
TIMES_NAME = "times.npy"
LENGTHS_NAME = "lengths.npy"
BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True, slots=True)
class Statistics:
    """A collection's documents, their mean length in terms, and each term's document frequency (v,)."""

    documents: int
    mean_length: float
    frequencies: NDArray[np.int64]


class PostingsWriter:
    """Takes documents one after the other; writes their postings at the end. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths = array("i")
        self._tokens = array("i")
        self._block_starts_at = 0
        self._block_shapes: list[tuple[int, ...]] = []
        self._frequencies = np.zeros(0, np.int64)
        self._most_times = 0
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> PostingsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, term_ids: Sequence[int]) -> None:
        """The next document's terms, in any order, with repeats."""
        if len(term_ids) >= BLOCK_TOKENS:  # by itself, in a fraction of the memory of a block
            terms, times = np.unique(np.asarray(term_ids, np.int32), return_counts=True)
            counted = np.stack([terms, np.zeros_like(terms), times.astype(np.int32)])
            self.add_counted(np.array([len(term_ids)], np.int32), [counted])
            return
        self._tokens.extend(term_ids)
        self._lengths.append(len(term_ids))
        if len(self._tokens) >= BLOCK_TOKENS:
            self._end_block()

    def add_counted(self, lengths: NDArray[np.int32], blocks: Iterable[NDArray[np.int32]]) -> None:
        """The next documents (n,), by the counts of another index.

        `blocks`: (3, m) term ids, positions in `lengths`, term frequencies. Equal terms are neighbours; a term's
        positions ascend, over all blocks. Where there is a fourth row, it is the bits of scores that are kept.
        """
        self._end_block()
        first = len(self._lengths)
        self._lengths.frombytes(np.ascontiguousarray(lengths, np.int32).tobytes())
        for block in blocks:
            self._keep(np.vstack([block[:1], block[1:2] + np.int32(first), block[2:]]))
        self._block_starts_at = len(self._lengths)

    def statistics(self, terms: int) -> Statistics:
        """The statistics of all documents so far. `terms`: v, the number of distinct terms."""
        self._end_block()
        tokens = int(np.frombuffer(self._lengths, np.int32).sum(dtype=np.int64)) if self._lengths else 0
        return Statistics(len(self._lengths), tokens / max(1, len(self._lengths)), _grown(self._frequencies, terms))

    def write(self, rank: NDArray[np.int64], k1: float, b: float, scored_by: Statistics) -> None:
        """Write the five arrays.

        Args:
            rank: the final id (v,) of each term.
            k1: of BM25.
            b: of BM25.
            scored_by: the statistics behind the scores; `frequencies` in the order of the ids of `add`.
        """
        idf = lucene_idf(scored_by)
        frequencies = np.empty(len(rank), np.int64)
        frequencies[rank] = self.statistics(len(rank)).frequencies
        indptr = np.concatenate([[0], np.cumsum(frequencies)]).astype(np.int64)
        lengths = np.frombuffer(self._lengths, np.int32)
        np.save(self._folder / INDPTR_NAME, indptr)
        np.save(self._folder / LENGTHS_NAME, lengths)
        indices = self._array(INDICES_NAME, np.int32, indptr)
        data = self._array(DATA_NAME, np.float32, indptr)
        counts = self._array(TIMES_NAME, np.min_scalar_type(self._most_times), indptr)
        shortness = document_shortness(lengths, k1, b, scored_by)
        heads = indptr[:-1].copy()  # where each term's next document goes
        for terms, rows, times, *kept in self._blocks():
            ranks = rank[terms]
            places, counted, distinct = _places(heads, ranks)
            indices[places] = rows
            data[places] = kept[0].view(np.float32) if kept else bm25_scores(idf[terms], times, shortness[rows])
            counts[places] = times
            heads[distinct] += counted
        for written in (indices, data, counts):
            written.flush()

    def _array(self, name: str, dtype: DTypeLike, indptr: NDArray[np.int64]) -> np.memmap[Any, Any]:
        return np.lib.format.open_memmap(self._folder / name, "w+", np.dtype(dtype), (int(indptr[-1]),))

    def _end_block(self) -> None:
        if not self._tokens:
            self._block_starts_at = len(self._lengths)
            return
        lengths = np.frombuffer(self._lengths, np.int32, offset=4 * self._block_starts_at)
        rows = np.repeat(np.arange(self._block_starts_at, len(self._lengths), dtype=np.int64), lengths)
        keys = np.frombuffer(self._tokens, np.int32).astype(np.int64) << 32 | rows
        pairs, times = np.unique(keys, return_counts=True)  # sorted by term, then by document
        terms = pairs >> 32
        self._keep(np.stack([terms, pairs & 0xFFFFFFFF, times]).astype(np.int32))
        self._tokens = array("i")
        self._block_starts_at = len(self._lengths)

    def _keep(self, block: NDArray[np.int32]) -> None:
        terms, times = block[0], block[2]
        if not len(terms):
            return
        self._file.write(block.tobytes())
        self._block_shapes.append(block.shape)
        self._frequencies = _grown(self._frequencies, int(terms.max()) + 1)
        self._frequencies += np.bincount(terms, minlength=len(self._frequencies))
        self._most_times = max(self._most_times, int(times.max()))

    def _blocks(self) -> Iterator[NDArray[np.int32]]:
        """Each block (3, m): terms, rows, times; or (4, m), see `add_counted`."""
        self._file.seek(0)
        for shape in self._block_shapes:
            yield np.frombuffer(self._file.read(4 * shape[0] * shape[1]), np.int32).reshape(shape)


def lucene_idf(of: Statistics) -> NDArray[np.float64]:
    """ln(1 + (N - df + 0.5) / (df + 0.5)) (v,): Kamphuis et al., ECIR 2020, table 1, "Lucene (accurate)"."""
    idf: NDArray[np.float64] = np.log(1 + (of.documents - of.frequencies + 0.5) / (of.frequencies + 0.5))
    return idf


def document_shortness(lengths: NDArray[np.int32], k1: float, b: float, of: Statistics) -> NDArray[np.float64]:
    """What a document's length (n,) adds below the fraction, by the mean length of a collection."""
    return np.asarray(k1 * (1 - b + b * lengths / (of.mean_length or 1)), np.float64)


def bm25_scores(
    idf: NDArray[np.float64], times: NDArray[np.int32], shortness: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The score (m,) of each posting, from those of its term, its term frequency, and its document's shortness."""
    scores: NDArray[np.float64] = idf * times / (times + shortness)
    return scores


def _places(
    heads: NDArray[np.int64], ranks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where each posting goes; each distinct rank's count, and these ranks. Equal ranks are neighbours."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ranks)) + 1])
    counted = np.diff(np.append(starts, len(ranks)))
    within = np.arange(len(ranks)) - np.repeat(starts, counted)
    return heads[ranks] + within, counted, ranks[starts]


def _grown(counts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.concatenate([counts, np.zeros(max(0, size - len(counts)), np.int64)])
