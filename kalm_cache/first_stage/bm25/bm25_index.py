"""Lexical search: BM25 over precomputed scores in memory-mapped files. Knows nothing of vectors.

The scores are those of bm25s (method `lucene`), which the first version built with; with 1,000,000 passages of 40 words
that took 1.57 GB, as it sorts all occurrences at once in memory.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage.bm25.analysis import PLAIN, UNNORMALISED, Analysis, query_terms, terms_of
from kalm_cache.first_stage.bm25.bm25_files import INFO_NAME, K1, ORDINALS_NAME, B, BM25Files, load
from kalm_cache.first_stage.bm25.collection import Collection, CollectionStatistics
from kalm_cache.first_stage.bm25.postings import PostingsWriter, Statistics
from kalm_cache.first_stage.candidates import Candidates, no_candidates, top_candidates
from kalm_cache.first_stage.ordinals import OrdinalRows
from kalm_cache.first_stage.selection import Selection
from kalm_cache.process.system import explained, refused
from kalm_cache.storage.arrays.vocabulary import Vocabulary, encode_term
from kalm_cache.storage.durable import publish_folder

FOLDER_NAME = "bm25"
RUN_ROWS = 256
MAX_QUERY_TERMS = 1024  # as many clauses as a query of Lucene may have


@dataclass(frozen=True, slots=True)
class ReusedDocuments:
    """Documents of one index that go into another without their texts: their ordinals (m,), ascending."""

    source: BM25Index
    ordinals: NDArray[np.int64]


class BM25Index:
    """Postings of terms, and the ordinal of each row. Searches may run in several threads."""

    def __init__(self, files: BM25Files, allowed: NDArray[np.bool_] | None = None) -> None:
        """`allowed` (n,): rows that searches may return; `None` = all."""
        self._files = files
        self._allowed = allowed

    @staticmethod
    def build(
        documents: Iterable[tuple[int, str]],
        folder: Path,
        statistics_of: CollectionStatistics | None = None,
        reused: Sequence[ReusedDocuments] = (),
        *,
        keep_scores: bool = False,
        analysis: Analysis = PLAIN,
    ) -> BM25Index:
        """Write `folder/bm25/` from pairs of ordinal and text, and return it opened.

        Texts are read one at a time. In memory are 12 bytes a document, the distinct terms, and a million occurrences;
        the other occurrences wait on disk, 12 bytes for each distinct term of each document.

        Args:
            documents: read once.
            folder: is made if it is not there.
            statistics_of: the collection whose document frequencies and mean length the scores are computed with, so
                that the scores of both can be compared: a text has the same score in both. Terms that it does not
                have count as often as they occur here.
            reused: documents that come before the others, from indexes with `has_counts`. The index is, to the last
                bit, what their texts would have made in this order. Where one of them is not `normalised`, neither
                is this one.
            keep_scores: documents that are reused keep the scores that they have, whatever scores were computed with.
            analysis: how texts become terms; that of what is reused.

        Raises:
            IndexMismatchError: what is reused was analysed in another way.
            StoreError: a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{FOLDER_NAME}.building"
        shutil.rmtree(written, ignore_errors=True)  # what a killed build left
        try:
            written.mkdir()
            _write(documents, written, statistics_of, reused, keep_scores, _common_analysis(analysis, reused))
            publish_folder(written, folder / FOLDER_NAME)
        except OSError as exc:
            raise StoreError(f"{written}: cannot be written: {explained(exc, written)}") from exc
        return BM25Index.open(folder)

    @staticmethod
    def open(folder: Path, mmap: bool = True) -> BM25Index:
        """Open `folder/bm25/`, memory-mapped or read into memory.

        Raises:
            IndexMismatchError: the index was built with another analysis of texts, or by an earlier version.
            StoreError: a file is missing or damaged.
        """
        path = folder / FOLDER_NAME
        if (path / "params.index.json").exists():
            raise IndexMismatchError(f"{path} was built by an earlier version of kalm-cache; index the corpus again")
        try:
            return BM25Index(load(path, mapped=mmap))
        except (OSError, ValueError) as exc:
            raise StoreError(f"{path} cannot be read; {refused(exc, path)}") from exc

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a BM25 index was built in `folder`."""
        return (folder / FOLDER_NAME).is_dir()

    @property
    def ntotal(self) -> int:
        """How many documents the index holds, those without terms and excluded ones included."""
        return len(self._files.ordinals)

    @property
    def ordinals(self) -> NDArray[np.int64]:
        """The ordinal (n,) of each document."""
        return self._files.ordinals

    @property
    def has_counts(self) -> bool:
        """Whether another index can reuse its documents; one of an earlier version has no counts."""
        return self._files.counted is not None

    @property
    def analysis(self) -> Analysis:
        """How its texts became terms, and queries do."""
        return self._files.analysis

    @property
    def normalised(self) -> bool:
        """Whether its words are in their normal form; those of an earlier version are as their texts spelt them."""
        return self.analysis.normalised

    def excluding(self, ordinals: NDArray[np.int64]) -> BM25Index:
        """The same index without some documents: searches go on to the next best, so `k` are found if there are."""
        allowed = np.ones(self.ntotal, np.bool_) if self._allowed is None else self._allowed.copy()
        allowed[OrdinalRows(self._files.ordinals).known(np.asarray(ordinals, np.int64))] = False
        return BM25Index(self._files, allowed)

    def selecting(self, selection: Selection) -> BM25Index:
        """The same index with some documents alone. Scores stay those of the whole collection."""
        selected = selection.mask(self._files.ordinals)
        return BM25Index(self._files, selected if self._allowed is None else selected & self._allowed)

    def search(self, queries: Sequence[str], k: int) -> list[Candidates]:
        """One list for each query, of the `k` best documents that share a term with it (so there may be fewer).

        Of a query, the first `MAX_QUERY_TERMS` terms count: each reads its postings.

        Raises:
            StoreError: the postings are damaged.
        """
        return [self._search_terms(terms[:MAX_QUERY_TERMS], k) for terms in query_terms(queries, self._files.analysis)]

    def statistics_for(self, terms: Sequence[str], local: Statistics, /) -> Statistics:
        """This index's statistics, with the document frequency of each of `terms` (v,): here, or else in `local`."""
        return Collection([self._files]).statistics_for(terms, local)

    @staticmethod
    def collection(folders: Sequence[Path]) -> Collection:
        """The indexes in several folders as one collection; errors as in `open`."""
        return Collection([BM25Index.open(folder)._files for folder in folders])

    def _search_terms(self, terms: list[str], k: int) -> Candidates:
        files = self._files
        known = [i for i in map(files.vocabulary.id_of, terms) if i is not None]
        if not known:
            return no_candidates()
        scores = np.zeros(self.ntotal, np.float32)
        try:
            for i in known:
                column = slice(files.indptr[i], files.indptr[i + 1])  # the postings of one term
                rows, each = files.indices[column], files.data[column]
                if len(rows) and (rows.min() < 0 or not np.isfinite(each).all()):
                    raise ValueError("a posting names no document, or scores no number")
                np.add.at(scores, rows, each)  # a third of the time of scores[...] +=
        except (IndexError, ValueError) as exc:
            raise StoreError(f"a BM25 index is damaged; run kalm-cache verify: {exc}") from exc
        if self._allowed is not None:
            scores *= self._allowed
        best = _best_rows(scores, k)
        return top_candidates(files.ordinals[best], scores[best], k)


def _best_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """A few rows, ascending, that have the `k` best among them, and none with a score of zero.

    Lucene's idf is positive, so zero means that no term is shared. The k-th best of the best of every run of rows is at
    most the k-th best score, and found in a fraction of the time.
    """
    runs = len(scores) // RUN_ROWS
    peaks = scores[: runs * RUN_ROWS].reshape(runs, RUN_ROWS).max(axis=1) if runs >= k else scores
    cut = np.partition(peaks, len(peaks) - k)[len(peaks) - k] if k < len(peaks) else 0
    return np.flatnonzero(scores >= cut if cut > 0 else scores > 0)  # of booleans: of floats it takes 7 times as long


def _common_analysis(wanted: Analysis, reused: Sequence[ReusedDocuments]) -> Analysis:
    """`wanted`, or that of an earlier version where something reused has it. Raises `IndexMismatchError`."""
    found = {part.source.analysis for part in reused} | {wanted}
    if found <= {PLAIN, UNNORMALISED} and UNNORMALISED in found:
        return UNNORMALISED
    if found != {wanted}:
        raise IndexMismatchError(f"text analyses differ: {', '.join(sorted(each.name for each in found))}")
    return wanted


def _write(
    documents: Iterable[tuple[int, str]],
    folder: Path,
    statistics_of: CollectionStatistics | None,
    reused: Sequence[ReusedDocuments],
    keep_scores: bool,
    analysis: Analysis,
) -> None:
    ordinals = array("q")
    vocabulary: dict[str, int] = {}

    def texts() -> Iterator[str]:
        for ordinal, text in documents:
            ordinals.append(ordinal)
            yield text

    with PostingsWriter(folder) as postings:
        for documents_of_source in reused:
            _add_reused(documents_of_source, postings, vocabulary, keep_scores)
            ordinals.frombytes(np.ascontiguousarray(documents_of_source.ordinals, np.int64).tobytes())
        for terms in terms_of(texts(), analysis):
            postings.add(array("i", (vocabulary.setdefault(term, len(vocabulary)) for term in terms)))
        local = postings.statistics(len(vocabulary))
        scored_by = local if statistics_of is None else statistics_of.statistics_for(list(vocabulary), local)
        encoded = [encode_term(term) for term in vocabulary]
        order = sorted(range(len(encoded)), key=encoded.__getitem__)
        Vocabulary.write((encoded[i] for i in order), folder)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        postings.write(rank, K1, B, scored_by)
    np.save(folder / ORDINALS_NAME, np.array(ordinals, np.int64))
    info = {"analysis": analysis.name, "documents": len(ordinals), "mean_length": local.mean_length}
    (folder / INFO_NAME).write_text(json.dumps(info) + "\n", encoding="utf-8")


def _add_reused(
    reused: ReusedDocuments, postings: PostingsWriter, vocabulary: dict[str, int], keep_scores: bool
) -> None:
    files = reused.source._files
    if files.counted is None:
        raise ValueError("an index of an earlier version has no counts")
    rows = OrdinalRows(files.ordinals).require(reused.ordinals)
    blocks = files.postings_of(rows, vocabulary, keep_scores=keep_scores)
    postings.add_counted(files.counted.lengths[rows], blocks)
