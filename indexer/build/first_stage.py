"""The first stage of a segment whose store was just sealed: vectors and postings, taken from where they are.

Each passage's vector is in the resume log, with the accepted passages, or in the dense index of the segment that it was
copied from. Of copied and recoded passages, BM25's postings are taken over too; the other texts are analysed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.build.batching import batched
from indexer.build.spec import BuildSpec
from indexer.build.unfinished.accepted_passages import AcceptedPassages, Origins
from kalm_cache.first_stage import BM25Index, DenseIndex, ReusedDocuments
from kalm_cache.storage.passage_store import PassageStore, doc_id_of

FOLDER = "first_stage"
SCAN = 4096  # passages looked up together


class ReusedPostings:
    """Which passages' postings are in an index of another segment already. 8 bytes a passage."""

    def __init__(self) -> None:
        self._by_index: dict[int, tuple[BM25Index, array[int]]] = {}  # by identity: an index is no value

    def reuse(self, source: BM25Index | None, ordinals: Sequence[int]) -> None:
        """Take over the passages with these ordinals if `source` has postings."""
        if source is not None:
            self._by_index.setdefault(id(source), (source, array("q")))[1].extend(ordinals)

    def of_each_source(self) -> list[ReusedDocuments]:
        """By source, that with the lowest ordinals first, so that these rise as they do where texts are analysed."""
        parts = [
            ReusedDocuments(source, np.sort(np.array(ordinals, np.int64)))
            for source, ordinals in self._by_index.values()
        ]
        return sorted((part for part in parts if len(part.ordinals)), key=lambda part: int(part.ordinals[0]))


class FirstStageBuild:
    """Builds both indexes of a sealed segment from what its build accepted."""

    def __init__(self, folder: Path, accepted: AcceptedPassages, origins: Origins) -> None:
        """`folder`: of the sealed segment."""
        self._folder, self._accepted, self._origins = folder, accepted, origins

    def build(self, spec: BuildSpec, postings: ReusedPostings) -> None:
        """Write the dense index, and the BM25 index where the spec wants one. Raises `StoreError`."""
        dimension, fingerprint = spec.models.embedder.dimension, spec.fingerprint
        DenseIndex.build(self._vectors(dimension), dimension, self._folder / FOLDER, spec.template.dense_index)
        if fingerprint.bm25:
            parts = postings.of_each_source()
            known = np.sort(np.concatenate([np.empty(0, np.int64), *(part.ordinals for part in parts)]))
            with PassageStore(self._folder) as store:
                texts = self._texts(known, store if fingerprint.store_text else None)
                BM25Index.build(
                    *(texts, self._folder / FOLDER, spec.statistics_of, parts),
                    keep_scores=spec.keep_scores,
                    analysis=spec.template.analysis,
                )

    def _vectors(self, dimension: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ordinals (n,) and vectors (n, E) of accepted passages, by rising ordinal."""
        for ordinals, keys in self._all():
            yield np.array(ordinals, np.int64), self._vectors_of(ordinals, keys, dimension)

    def _all(self) -> Iterator[tuple[list[int], list[bytes]]]:
        """Ordinals and keys of accepted passages, by rising ordinal."""
        for pairs in batched(self._accepted.ordinals(), SCAN):
            yield [ordinal for ordinal, _ in pairs], [key for _, key in pairs]

    def _vectors_of(self, ordinals: list[int], keys: list[bytes], dimension: int) -> NDArray[np.float32]:
        """The vectors (n, E) of accepted passages, each from where it is."""
        vectors = np.empty((len(keys), dimension), np.float32)
        by_passage = self._accepted.origins_of(keys)
        for origin in set(by_passage):
            rows = [i for i, its_origin in enumerate(by_passage) if its_origin == origin]
            segment = self._origins.segment(origin or 0)
            if segment is None:
                vectors[rows] = self._origins.resume_log.vectors([keys[i] for i in rows])
            elif segment.vectors is not None:
                vectors[rows] = segment.vectors(np.array([ordinals[i] for i in rows], np.int64))
            else:
                vectors[rows] = self._accepted.vectors([keys[i] for i in rows])
        return vectors

    def _texts(self, known: NDArray[np.int64], store: PassageStore | None) -> Iterator[tuple[int, str]]:
        """Ordinals and texts of accepted passages whose ordinals are not `known`, rising."""
        for ordinals, keys in self._all():
            start, end = np.searchsorted(known, [ordinals[0], ordinals[-1] + 1])
            unknown = np.flatnonzero(~np.isin(ordinals, known[start:end])).tolist()
            yield from zip([ordinals[i] for i in unknown], self._read([keys[i] for i in unknown], store), strict=True)

    def _read(self, keys: list[bytes], store: PassageStore | None) -> Iterable[str]:
        if store is None:
            return self._accepted.texts(keys)
        return (text or "" for text in store.texts([doc_id_of(key) for key in keys]))
