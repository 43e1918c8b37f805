"""The resume log: what a build has encoded so far, durable after every batch. All that a resumed build knows.

A build that was killed is run again with the same corpus; a passage that is in here, undamaged and of the same text, is
not encoded again. Written in order of arrival, one transaction a batch; dropped when the segment is sealed. The file is
called working.lmdb. Databases:

    records   doc id -> crc32 u32 of key and rest · ordinal i64 · content hash 16 B · common 12 B · fields 4 B · payload
    vectors   doc id -> crc32 u32 of key and rest · the first stage's vector, float32
    meta      "next_number" -> int64, big-endian: the next ordinal; none is given twice

Beside it, ordinals.lmdb has the ordinals that ids were given, also before they are encoded.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage.checksummed_block import COMMON_BYTES
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.passage_store import PassageMeta, key_of, ordinal_key, ordinal_of
from kalm_cache.storage.record import STATES, Record, unpack_record

RESUME_LOG_FILE = "working.lmdb"  # its name on disk from the first version
ORDINALS_FILE = "ordinals.lmdb"
DATABASES = ("records", "vectors", "meta")
RESERVED = ("ordinals", "meta")
NEXT_ORDINAL = b"next_number"
_CRC = struct.Struct("<I")
_META = struct.Struct("<q16s")
_FIELDS_AT = _META.size + COMMON_BYTES
_PAYLOAD_AT = _FIELDS_AT + STATES.field_bytes


@dataclass(frozen=True, slots=True)
class EncodedPassage:
    """What is written for one passage; `vector` (E,)."""

    doc_id: str
    meta: PassageMeta
    record: Record
    vector: NDArray[np.float32]


class Reservations:
    """Ordinals in the order of the corpus, each kept for its id: a resumed build gives every passage the same again.

    Of two passages that score the same, that with the lower ordinal comes first; so answers do not depend on how
    passages were batched, or on the shard that they are in. A file of its own, made when it is needed; a context
    manager. Databases:

        ordinals  doc id -> int64, big-endian
        meta      "next_number" -> int64, big-endian: the next one
    """

    def __init__(self, path: Path, first: int) -> None:
        """`first`: no ordinal below it is given to an id that has none."""
        self._path, self._open, self.next = path, ExitStack(), first
        self._file: LmdbFile | None = None
        if path.exists():
            self.next = max(first, _next_in(self._opened()))

    def __enter__(self) -> Reservations:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _opened(self) -> LmdbFile:
        if self._file is None:
            _drop_cut(self._path)
            self._file = self._open.enter_context(closing(LmdbFile(self._path, RESERVED, writable=True, lock=False)))
        return self._file

    def reserve(self, doc_ids: Sequence[str]) -> list[int]:
        """The ordinal of each id, durably. Raises `StoreError`."""
        if not doc_ids:
            return []
        file = self._opened()

        def reserve_all(txn: lmdb.Transaction[bytes]) -> tuple[list[int], int]:
            ordinals, following = [], self.next
            for key in map(key_of, doc_ids):
                if txn.put(key, ordinal_key(following), overwrite=False, db=file["ordinals"]):
                    following += 1
                ordinals.append(ordinal_of(txn.get(key, b"", db=file["ordinals"])))
            txn.put(NEXT_ORDINAL, ordinal_key(following), db=file["meta"])
            return ordinals, following

        ordinals, self.next = file.write(reserve_all)
        return ordinals


class ResumeLog:
    """An LMDB file of the building folder. A context manager."""

    def __init__(self, path: Path) -> None:
        _drop_cut(path)
        self._file = LmdbFile(path, DATABASES, writable=True)

    def __enter__(self) -> ResumeLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        with self._file.reading("records") as txn:
            return int(txn.stat(self._file["records"])["entries"])

    def next_ordinal(self) -> int:
        """The ordinal that the next new passage gets, by this file alone."""
        return _next_in(self._file)

    def write(self, batch: Sequence[EncodedPassage], next_ordinal: int) -> None:
        """Store a batch and the ordinals given with it, in one transaction: all of it or nothing."""

        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for passage in batch:
                key = key_of(passage.doc_id)
                txn.put(key, _pack(key, passage), db=self._file["records"])
                txn.put(key, with_checksum(key, passage.vector.astype("<f4").tobytes()), db=self._file["vectors"])
            txn.put(NEXT_ORDINAL, ordinal_key(next_ordinal), db=self._file["meta"])

        self._file.write(put_all)

    def keys(self) -> Iterator[bytes]:
        """The key of every passage, in order."""
        return (key for key, _ in self._file.scan("records"))

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """Of each id; `None` where it is not stored, or its record or vector is damaged."""
        with self._file.reading("records") as txn:
            return [self._meta(txn, key_of(doc_id)) for doc_id in doc_ids]

    def _meta(self, txn: lmdb.Transaction[bytes], key: bytes) -> PassageMeta | None:
        try:
            self._vector(txn, key)
            return _unpack(key, txn.get(key, b""))[0]
        except DamagedRecordError:
            return None

    def get(self, key: bytes) -> tuple[PassageMeta, Record]:
        """A stored passage. Raises `DamagedRecordError`."""
        with self._file.reading("records") as txn:
            return _unpack(key, txn.get(key, b""))

    def vectors(self, keys: Sequence[bytes]) -> list[NDArray[np.float32]]:
        """Vectors (E,) of stored passages. Raises `DamagedRecordError`."""
        with self._file.reading("vectors") as txn:
            return [self._vector(txn, key) for key in keys]

    def _vector(self, txn: lmdb.Transaction[bytes], key: bytes) -> NDArray[np.float32]:
        return np.frombuffer(verify_checksum(key, txn.get(key, b"", db=self._file["vectors"])), "<f4")


def _drop_cut(path: Path) -> None:
    """Remove a file that a full disk or a death cut short when it was made: nothing was ever stored in it."""
    if path.exists() and path.stat().st_size < 2 * mmap.PAGESIZE:
        path.unlink()


def _next_in(file: LmdbFile) -> int:
    with file.reading("meta") as txn:
        value = txn.get(NEXT_ORDINAL)
    return 0 if value is None else ordinal_of(value)


def with_checksum(key: bytes, content: bytes) -> bytes:
    """Content under `key`, behind a checksum of both."""
    return _CRC.pack(zlib.crc32(content, zlib.crc32(key, len(key)))) + content


def verify_checksum(key: bytes, value: bytes) -> bytes:
    """Inverse of `with_checksum`. Raises `DamagedRecordError`."""
    content = value[_CRC.size :]
    if len(value) < _CRC.size or _CRC.unpack_from(value)[0] != zlib.crc32(content, zlib.crc32(key, len(key))):
        raise DamagedRecordError(f"{key.decode('utf-8', 'replace')!r} of an unfinished build: checksum mismatch")
    return content


def _pack(key: bytes, passage: EncodedPassage) -> bytes:
    record = passage.record
    return with_checksum(key, b"".join((_META.pack(*passage.meta), record.common, record.fields, record.payload)))


def _unpack(key: bytes, value: bytes) -> tuple[PassageMeta, Record]:
    content = verify_checksum(key, value)
    if len(content) < _PAYLOAD_AT:
        raise StoreError(f"{key!r} of an unfinished build: {len(content)} bytes are no record")
    common, fields = content[_META.size : _FIELDS_AT], content[_FIELDS_AT:_PAYLOAD_AT]
    meta = PassageMeta(*_META.unpack_from(content))
    return meta, unpack_record(common, fields, memoryview(content)[_PAYLOAD_AT:])
