"""What one pass over a corpus keeps on disk, so that memory does not grow with it; a later pass begins anew.

seen      doc id -> where in the corpus it was met first
origins   doc id -> u8, where its states are to be taken from when the segment is sealed
numbers   number, big-endian -> doc id
texts     doc id -> crc32 of key and rest, zstd frame of the text; only of those that no store holds
vectors   doc id -> crc32 of key and rest, float32; only of those that no store and no index holds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from indexer.build.resume_log import checked, unchecked
from indexer.corpus import CorpusLine
from kalm_cache.errors import StoreError
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.passage_store import key_of, ordinal_key, ordinal_of, pack_text, unpack_text

DATABASES = ("seen", "origins", "numbers", "texts", "vectors")


class Staging:
    """An LMDB file of the building folder, never read by another process. A context manager."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of an interrupted pass
        self._file = LmdbFile(path, DATABASES, writable=True, durable=False, lock=False)

    def __enter__(self) -> Staging:
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

    def accept(self, origin: int, ordinals: Sequence[int], doc_ids: Sequence[str]) -> None:
        """Say where these passages come from, and their numbers. Raises `StoreError` for a number given twice."""
        value = bytes([origin])

        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for ordinal, doc_id in zip(ordinals, doc_ids, strict=True):
                key = key_of(doc_id)
                txn.put(key, value, db=self._file["origins"])
                if not txn.put(ordinal_key(ordinal), key, overwrite=False, db=self._file["numbers"]):
                    raise StoreError(f"number {ordinal} of {doc_id!r} is another passage's, too; run kalm-cache verify")

        self._file.write(put_all)

    def put_texts(self, doc_ids: Sequence[str], texts: Sequence[str]) -> None:
        """Keep texts, compressed."""
        self._put("texts", doc_ids, [pack_text(text) for text in texts])

    def put_vectors(self, doc_ids: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep vectors (n, E)."""
        self._put("vectors", doc_ids, [vector.astype("<f4").tobytes() for vector in vectors])

    def _put(self, database: str, doc_ids: Sequence[str], contents: Sequence[bytes]) -> None:
        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for doc_id, content in zip(doc_ids, contents, strict=True):
                key = key_of(doc_id)
                txn.put(key, checked(key, content), db=self._file[database])

        self._file.write(put_all)

    def origins(self) -> Iterator[tuple[bytes, int]]:
        """Key and origin of every accepted passage, in order of keys."""
        return ((key, value[0]) for key, value in self._file.scan("origins"))

    def origins_of(self, keys: Sequence[bytes]) -> list[int | None]:
        """The origin of each key; `None` where no such passage was accepted."""
        with self._file.reading("origins") as txn:
            values = [txn.get(key) for key in keys]
        return [None if value is None else value[0] for value in values]

    def ordinals(self) -> Iterator[tuple[int, bytes]]:
        """Number and key of every accepted passage, by rising number."""
        return ((ordinal_of(ordinal), key) for ordinal, key in self._file.scan("numbers"))

    def frame(self, key: bytes) -> bytes:
        """A kept text, still compressed. Raises `DamagedRecordError`, also when it was not kept."""
        with self._file.reading("texts") as txn:
            return unchecked(key, txn.get(key, b""))

    def texts(self, keys: Sequence[bytes]) -> Iterator[str]:
        """Kept texts, one at a time. Raises `DamagedRecordError`."""
        for key in keys:
            yield unpack_text(self.frame(key))

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Kept vectors (E,). Raises `DamagedRecordError`, also for one that was not kept."""
        with self._file.reading("vectors") as txn:
            return [np.frombuffer(unchecked(key, txn.get(key, b"")), "<f4") for key in keys]
