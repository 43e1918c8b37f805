"""What the present pass over the corpus has met and accepted, on disk, so that memory does not grow with the corpus.

A later pass begins anew: nothing of an interrupted one is read again (what is, is in resume_log.py). The file is called
staging.lmdb. Databases:

    seen      doc id -> where in the corpus it was met first
    origins   doc id -> u16, the origin of its states: where they are when the segment is sealed (see `Origins`)
    numbers   ordinal, big-endian -> doc id
    texts     doc id -> crc32 of key and rest, zstd frame of the text; only of those that no store holds
    vectors   doc id -> crc32 of key and rest, float32; only of those that no store and no index holds
    metadata  doc id -> JSON object of typed values by column; only of those that have any
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from indexer.build.batching import batched
from indexer.build.unfinished.resume_log import ResumeLog, verify_checksum, with_checksum
from indexer.corpus import CorpusLine
from indexer.reuse.origins import SealedSegment
from kalm_cache.errors import StoreError
from kalm_cache.metadata import Value
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.passage_store import key_of, ordinal_key, ordinal_of, pack_text, unpack_text

METADATA_SCAN = 4096  # passages whose metadata is read together
ACCEPTED_FILE = "staging.lmdb"  # its name on disk from the first version
RESUME_LOG = 0  # the origin of what this build encoded or recoded; those of sealed segments are 1, 2, …
DATABASES = ("seen", "origins", "numbers", "texts", "vectors", "metadata")


@dataclass(frozen=True, slots=True)
class Origins:
    """Where states of accepted passages are: origin 0 is the resume log, origin n is the nth sealed segment.

    `finished_before`: so many of the first sealed segments are of interrupted runs of this very build.
    """

    resume_log: ResumeLog
    sealed: list[SealedSegment]
    finished_before: int

    def segment(self, origin: int) -> SealedSegment | None:
        """The sealed segment of an origin; `None` for the resume log."""
        return None if origin == RESUME_LOG else self.sealed[origin - 1]

    def is_resumed(self, origin: int) -> bool:
        """Whether interrupted runs of this build encoded what is there."""
        return origin <= self.finished_before

    def resumed(self) -> list[ResumeLog | SealedSegment]:
        """All that `is_resumed`."""
        return [self.resume_log, *self.sealed[: self.finished_before]]


class AcceptedPassages:
    """An LMDB file of the building folder, never read by another process. A context manager."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of an interrupted pass
        self._file = LmdbFile(path, DATABASES, writable=True, durable=False, lock=False)

    def __enter__(self) -> AcceptedPassages:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def claim(self, lines: Sequence[CorpusLine]) -> list[str | None]:
        """Mark each line's id as seen in this pass: `None` where it is new, else where it was seen first."""

        def claim_all(txn: lmdb.Transaction[bytes]) -> list[str | None]:
            seen = self._file["seen"]
            firsts: list[str | None] = []
            for line in lines:
                key = key_of(line.passage.doc_id)
                new = txn.put(key, line.location.encode("utf-8", "surrogateescape"), overwrite=False, db=seen)
                firsts.append(None if new else txn.get(key, b"", db=seen).decode("utf-8", "surrogateescape"))
            return firsts

        return self._file.write(claim_all)

    def unseen(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those that no line of the corpus has claimed in this pass."""
        with self._file.reading("seen") as txn:
            return [key for key in keys if txn.get(key) is None]

    def accept(
        self,
        origin: int,
        ordinals: Sequence[int],
        doc_ids: Sequence[str],
        *,
        texts: Sequence[str] = (),
        vectors: NDArray[np.float32] | None = None,
        metadata: Sequence[Mapping[str, Value]] = (),
    ) -> None:
        """Note where these passages come from, under which ordinals, in one transaction.

        Args:
            origin: of all of them.
            ordinals: one for each.
            doc_ids: their ids.
            texts: to be kept here, one for each; none where a store holds them.
            vectors: (n, E), to be kept here, where nothing else holds them.
            metadata: values by column, one for each.

        Raises:
            StoreError: an ordinal was given twice.
        """
        keys = [key_of(doc_id) for doc_id in doc_ids]
        frames = [pack_text(text) for text in texts]

        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for database, contents in (("texts", frames), ("vectors", _rows(vectors))):
                for key, content in zip(keys, contents, strict=True) if contents else ():
                    txn.put(key, with_checksum(key, content), db=self._file[database])
            for key, values in zip(keys, metadata, strict=True) if metadata else ():
                if values:
                    txn.put(key, json.dumps(values).encode(), db=self._file["metadata"])
            for ordinal, doc_id, key in zip(ordinals, doc_ids, keys, strict=True):
                txn.put(key, origin.to_bytes(2, "big"), db=self._file["origins"])
                if not txn.put(ordinal_key(ordinal), key, overwrite=False, db=self._file["numbers"]):
                    raise StoreError(f"ordinal {ordinal} of {doc_id!r} is another passage's; run kalm-cache verify")

        self._file.write(put_all)

    def origins(self) -> Iterator[tuple[bytes, int]]:
        """Key and origin of every accepted passage, in order of keys."""
        return ((key, int.from_bytes(value, "big")) for key, value in self._file.scan("origins"))

    def origins_of(self, keys: Sequence[bytes]) -> list[int | None]:
        """The origin of each key; `None` where no such passage was accepted."""
        with self._file.reading("origins") as txn:
            values = [txn.get(key) for key in keys]
        return [None if value is None else int.from_bytes(value, "big") for value in values]

    def ordinals(self) -> Iterator[tuple[int, bytes]]:
        """Ordinal and key of every accepted passage, by rising ordinal."""
        return ((ordinal_of(ordinal), key) for ordinal, key in self._file.scan("numbers"))

    def metadata(self) -> Iterator[tuple[int, dict[str, Value]]]:
        """Ordinal and metadata of every accepted passage, by rising ordinal."""
        for pairs in batched(self.ordinals(), METADATA_SCAN):
            with self._file.reading("metadata") as txn:
                found = [txn.get(key) for _, key in pairs]
            for (ordinal, _), values in zip(pairs, found, strict=True):
                yield ordinal, {} if values is None else json.loads(values)

    def frame(self, key: bytes) -> bytes:
        """A text that is kept here, still compressed. Raises `DamagedRecordError`, also when it is not there."""
        with self._file.reading("texts") as txn:
            return verify_checksum(key, txn.get(key, b""))

    def texts(self, keys: Sequence[bytes]) -> Iterator[str]:
        """Texts that are kept here, read singly. Raises `DamagedRecordError`."""
        return (unpack_text(self.frame(key)) for key in keys)

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Vectors (E,) that are kept here. Raises `DamagedRecordError`, also where there is none."""
        with self._file.reading("vectors") as txn:
            return [np.frombuffer(verify_checksum(key, txn.get(key, b"")), "<f4") for key in keys]


def _rows(vectors: NDArray[np.float32] | None) -> list[bytes]:
    return [] if vectors is None else [vector.astype("<f4").tobytes() for vector in vectors]
