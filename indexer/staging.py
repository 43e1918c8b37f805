"""What a build keeps beside its shard until it is published: first-stage inputs, and which ids this pass has seen.

A batch is staged before it is stored, so that every stored passage has its inputs here, whenever the job is killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from indexer.corpus import CorpusLine
from kalm_cache.store import key_of, open_environment, pack_text, unpack_text, write_growing

DATABASES = (b"vectors", b"texts", b"seen")


class Staging:
    """An LMDB file of the building folder, removed when the build is published. A context manager."""

    def __init__(self, path: Path) -> None:
        self.environment = open_environment(path, writable=True, databases=len(DATABASES))
        self._vectors, self._texts, self._seen = (self.environment.open_db(name) for name in DATABASES)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self.environment.close()

    def forget_seen(self) -> None:
        """Begin a pass over the corpus."""
        write_growing(self.environment, lambda txn: txn.drop(self._seen, delete=False))

    def claim(self, lines: Sequence[CorpusLine]) -> list[str | None]:
        """Mark each line's id as seen in this pass: `None` where it is new, else where it was seen first."""

        def claim_all(txn: lmdb.Transaction) -> list[str | None]:
            firsts: list[str | None] = []
            for line in lines:
                key = key_of(line.passage.doc_id)
                new = txn.put(key, line.location.encode("utf-8", "surrogateescape"), overwrite=False, db=self._seen)
                firsts.append(None if new else _text(txn.get(key, db=self._seen)))
            return firsts

        return write_growing(self.environment, claim_all)

    def unseen(self, keys: Sequence[bytes]) -> list[bytes]:
        """Those of `keys` that no line of this pass had."""
        with self.environment.begin(db=self._seen) as txn:
            return [key for key in keys if txn.get(key) is None]

    def put(self, doc_ids: Sequence[str], texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Keep a batch's texts and vectors (n, E) for the first stage."""

        def put_all(txn: lmdb.Transaction) -> None:
            for doc_id, text, vector in zip(doc_ids, texts, vectors, strict=True):
                key = key_of(doc_id)
                txn.put(key, vector.astype("<f4").tobytes(), db=self._vectors)
                txn.put(key, pack_text(key, text), db=self._texts)

        write_growing(self.environment, put_all)

    def vectors(self, doc_ids: Sequence[str]) -> NDArray[np.float32]:
        """The staged vectors (n, E) of these ids."""
        with self.environment.begin(db=self._vectors) as txn:
            return np.stack([np.frombuffer(txn.get(key_of(doc_id), b""), "<f4") for doc_id in doc_ids])

    def texts(self, doc_ids: Sequence[str]) -> Iterator[str]:
        """The staged texts of these ids, one at a time."""
        with self.environment.begin(db=self._texts) as txn:
            for doc_id in doc_ids:
                key = key_of(doc_id)
                yield unpack_text(key, bytes(txn.get(key, b"")))


def _text(location: bytes | memoryview | None) -> str:
    return bytes(location or b"").decode("utf-8", "surrogateescape")
