"""Several BM25 indexes as one collection: its statistics, and the scores by them. Knows nothing of texts or queries.

A document scores the same in a shard as it would in one index of all shards, to the last bit: document frequencies and
lengths are whole numbers, and are added up before anything is divided.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError
from kalm_cache.first_stage.bm25.bm25_files import BLOCK_POSTINGS, K1, B, BM25Files
from kalm_cache.first_stage.bm25.postings import (
    DATA_NAME,
    Statistics,
    bm25_scores,
    document_shortness,
    lucene_idf,
)
from kalm_cache.process.system import explained
from kalm_cache.storage.durable import publish_file


class CollectionStatistics(Protocol):
    """What scores can be computed with: a `BM25Index`, or a `Collection` of several."""

    def statistics_for(self, terms: Sequence[str], local: Statistics, /) -> Statistics:
        """The statistics, with the document frequency of each of `terms` (v,): here, or else in `local`."""


class Collection:
    """The documents of several indexes; each is in one of them."""

    def __init__(self, indexes: Sequence[BM25Files]) -> None:
        self._indexes = indexes
        self.documents = sum(len(files.ordinals) for files in indexes)
        terms = sum(round(files.mean_length * len(files.ordinals)) for files in indexes)  # whole numbers again
        self.mean_length = terms / max(1, self.documents)

    def statistics_for(self, terms: Sequence[str], local: Statistics, /) -> Statistics:
        """See `CollectionStatistics.statistics_for`; of a collection without documents, `local` itself."""
        if not self.documents:
            return local
        here = np.zeros(len(terms), np.int64)
        for files in self._indexes:
            ids = [files.vocabulary.id_of(term) for term in terms]
            here += np.array([0 if i is None else int(files.indptr[i + 1] - files.indptr[i]) for i in ids], np.int64)
        frequencies = np.where(here > 0, here, np.minimum(local.frequencies, self.documents))
        return Statistics(self.documents, self.mean_length, frequencies)

    def score(self, folders: Sequence[Path]) -> None:
        """Compute every index's scores by the statistics of all, and put them in the place of its own.

        `folders`: of each, its `bm25`. What was there is replaced, not changed: another name of it keeps it.

        Raises:
            StoreError: an index has no counts, as those of earlier versions, or a file cannot be written.
        """
        for files, folder, frequencies in zip(self._indexes, folders, self._frequencies(), strict=True):
            try:
                _write_scores(files, folder, Statistics(self.documents, self.mean_length, frequencies))
            except OSError as exc:
                raise StoreError(f"{folder}: cannot be written: {explained(exc, folder)}") from exc

    def _frequencies(self) -> list[NDArray[np.int64]]:
        """For each index, how many documents of all have each of its terms. One pass over the sorted vocabularies."""
        own = [np.diff(files.indptr) for files in self._indexes]
        totals = [np.empty_like(frequencies) for frequencies in own]
        merged = heapq.merge(*(_named(place, files) for place, files in enumerate(self._indexes)))
        for _, group in groupby(merged, key=itemgetter(0)):
            places = [(place, term) for _, place, term in group]
            total = sum(int(own[place][term]) for place, term in places)
            for place, term in places:
                totals[place][term] = total
        return totals


def _named(place: int, files: BM25Files) -> Iterator[tuple[bytes, int, int]]:
    return ((files.vocabulary[term], place, term) for term in range(len(files.vocabulary)))


def _write_scores(files: BM25Files, folder: Path, statistics: Statistics) -> None:
    if files.counted is None:
        raise StoreError(f"{folder}: is of an earlier version, without the counts behind its scores; index again")
    idf = lucene_idf(statistics)
    shortness = document_shortness(files.counted.lengths, K1, B, statistics)
    written = folder / f"{DATA_NAME}.scoring"
    scores = np.lib.format.open_memmap(written, "w+", np.dtype(np.float32), (len(files.indices),))
    for start in range(0, len(files.indices), BLOCK_POSTINGS):
        end = min(start + BLOCK_POSTINGS, len(files.indices))
        times = files.counted.times[start:end].astype(np.int32)
        scores[start:end] = bm25_scores(idf[files.terms_of(start, end)], times, shortness[files.indices[start:end]])
    scores.flush()
    publish_file(written, folder / DATA_NAME)
