"""The first stage of a segment whose store was just sealed: vectors and postings, taken over from where they are.

Each passage's vector is in the working file, in the staging file, or in the dense index of the segment it was copied
from. Of copied and recoded passages, BM25's postings are taken over too; the other texts are analysed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.build.accepted_ids import Staging
from indexer.build.intake import batched
from indexer.build.resume_log import WorkingFile
from indexer.build.seal import SCAN, WORKING
from indexer.reuse.origins import SealedSegment
from kalm_cache.first_stage import BM25Index, DenseChoice, DenseIndex, Taken
from kalm_cache.storage.passage_store import PassageStore, doc_id_of

FOLDER = "first_stage"


class TakenPostings:
    """Which passages' postings are in an index of another segment already. 8 bytes a passage."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[BM25Index, array[int]]] = {}  # by identity: an index is no value

    def take(self, source: BM25Index | None, ordinals: Sequence[int]) -> None:
        """Take over the passages with these numbers if `source` has postings."""
        if source is not None:
            self._taken.setdefault(id(source), (source, array("q")))[1].extend(ordinals)

    def of_each_source(self) -> list[Taken]:
        """By source, that with the lowest numbers first, so that numbers rise as they do where texts are analysed."""
        taken = [Taken(source, np.sort(np.array(ordinals, np.int64))) for source, ordinals in self._taken.values()]
        return sorted((one for one in taken if len(one.ordinals)), key=lambda one: int(one.ordinals[0]))


class FirstStageBuild:
    """Where everything is that a build accepted."""

    def __init__(self, folder: Path, working: WorkingFile, staging: Staging, segments: Sequence[SealedSegment]) -> None:
        """`folder`: of the sealed segment. `segments`: sealed ones that it was copied from, by origin."""
        self._folder, self._working, self._staging, self._segments = folder, working, staging, segments

    def build_dense(self, dimension: int, choice: DenseChoice) -> None:
        """Write the dense index. Raises `StoreError`."""

        def batches() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            for ordinals, keys in self._all():
                yield np.array(ordinals, np.int64), self._vectors(ordinals, keys, dimension)

        DenseIndex.build(batches(), dimension, self._folder / FOLDER, choice)

    def build_bm25(self, taken: TakenPostings, statistics_of: BM25Index | None, *, store_text: bool) -> None:
        """Write the BM25 index. Raises `StoreError`."""
        parts = taken.of_each_source()
        known = np.sort(np.concatenate([np.empty(0, np.int64), *(one.ordinals for one in parts)]))
        with PassageStore(self._folder) as store:
            texts = self._texts(known, store if store_text else None)
            BM25Index.build(texts, self._folder / FOLDER, statistics_of, parts)

    def _all(self) -> Iterator[tuple[list[int], list[bytes]]]:
        """Numbers and keys of accepted passages, by rising number."""
        for pairs in batched(self._staging.ordinals(), SCAN):
            yield [ordinal for ordinal, _ in pairs], [key for _, key in pairs]

    def _vectors(self, ordinals: list[int], keys: list[bytes], dimension: int) -> NDArray[np.float32]:
        """The first stage's vectors (n, E) of accepted passages, each from where it is."""
        vectors = np.empty((len(keys), dimension), np.float32)
        origins = self._staging.origins_of(keys)
        for place in set(origins):
            rows = [i for i, origin in enumerate(origins) if origin == place]
            here = [keys[i] for i in rows]
            copied = self._segments[place - 1].vectors if place else None
            if place == WORKING:
                vectors[rows] = self._working.vectors(here)
            elif copied is not None:
                vectors[rows] = copied(np.array([ordinals[i] for i in rows], np.int64))
            else:
                vectors[rows] = self._staging.vectors(here)
        return vectors

    def _texts(self, known: NDArray[np.int64], store: PassageStore | None) -> Iterator[tuple[int, str]]:
        """Numbers and texts of accepted passages whose numbers are not known already."""
        for ordinals, keys in self._all():
            start, end = np.searchsorted(known, [ordinals[0], ordinals[-1] + 1])
            unknown = np.flatnonzero(~np.isin(ordinals, known[start:end])).tolist()
            yield from zip([ordinals[i] for i in unknown], self._read([keys[i] for i in unknown], store), strict=True)

    def _read(self, keys: list[bytes], store: PassageStore | None) -> Iterable[str]:
        if store is None:
            return self._staging.texts(keys)
        return (text or "" for text in store.texts([doc_id_of(key) for key in keys]))
