"""What a build keeps beside its shard until it is published: first-stage inputs, and which ids this pass has seen.

A batch is staged before it is stored. The two are different files, so that a kill can leave an id staged with another
text than it is stored with: `unstaged` finds those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from indexer.corpus import CorpusLine
from kalm_cache.lmdb_file import LmdbFile
from kalm_cache.passage import Passage
from kalm_cache.store import key_of, pack_text, unpack_text

DATABASES = ("vectors", "texts", "seen")
_HASH_BYTES = 16  # a vector is kept behind the content hash of its text


class Staging:
    """An LMDB file of the building folder, removed when the build is published. A context manager."""

    def __init__(self, path: Path) -> None:
        self._file = LmdbFile(path, DATABASES, writable=True)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def forget_seen(self) -> None:
        """Begin a pass over the corpus."""
        self._file.write(lambda txn: txn.drop(self._file["seen"], delete=False))

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
        """Those of `keys` that no line of this pass had."""
        with self._file.reading("seen") as txn:
            return [key for key in keys if txn.get(key) is None]

    def unstaged(self, passages: Sequence[Passage]) -> list[Passage]:
        """Those whose very text is not staged: never put, or put with another text."""
        with self._file.reading("vectors") as txn:
            staged = [txn.get(key_of(passage.doc_id), b"")[:_HASH_BYTES] for passage in passages]
        return [passage for passage, text in zip(passages, staged, strict=True) if text != passage.content_hash()]

    def put(self, passages: Sequence[Passage], vectors: NDArray[np.float32]) -> None:
        """Keep a batch's texts and vectors (n, E) for the first stage."""

        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for passage, vector in zip(passages, vectors, strict=True):
                key = key_of(passage.doc_id)
                txn.put(key, passage.content_hash() + vector.astype("<f4").tobytes(), db=self._file["vectors"])
                txn.put(key, pack_text(key, passage.text), db=self._file["texts"])

        self._file.write(put_all)

    def vectors(self, doc_ids: Sequence[str]) -> NDArray[np.float32]:
        """The staged vectors (n, E) of these ids."""
        with self._file.reading("vectors") as txn:
            values = [txn.get(key_of(doc_id), b"") for doc_id in doc_ids]
        return np.stack([np.frombuffer(value, "<f4", offset=_HASH_BYTES) for value in values])

    def texts(self, doc_ids: Sequence[str]) -> Iterator[str]:
        """The staged texts of these ids, one at a time."""
        with self._file.reading("texts") as txn:
            for doc_id in doc_ids:
                key = key_of(doc_id)
                yield unpack_text(key, txn.get(key, b""))
