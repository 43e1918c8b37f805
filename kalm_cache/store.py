"""One shard's LMDB file: records, texts and numbers under doc ids. Knows bytes, not tensors.

Databases in the file:

    records   doc id -> record (see record.py)
    texts     doc id -> crc32 of key and rest, zstd of the text; empty when the index keeps no text
    numbers   int64, big-endian -> doc id
    meta      "next_number" -> int64, big-endian: numbers are given once and never again
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import lmdb
import zstandard

from kalm_cache.errors import DamagedRecordError, StoreError

DATABASES = (b"records", b"texts", b"numbers", b"meta")
NEXT_NUMBER = b"next_number"
INITIAL_MAP_BYTES = 1 << 30
MAX_TEXT_BYTES = 1 << 30
_NUMBER = struct.Struct(">q")
_CRC = struct.Struct("<I")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written for one passage: packed record, its number, and its text unless the index keeps none."""

    doc_id: str
    number: int
    record: bytes
    text: str | None


class PassageStore:
    """Read access to a shard file; a context manager. `writable=False` never locks nor changes the file."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open (and with `writable`, create) the file. Raises `StoreError` when it cannot be opened."""
        self.path = path
        self.environment = open_environment(path, writable=writable, databases=len(DATABASES))
        self._db = {name: self.environment.open_db(name, create=writable) for name in DATABASES}

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; the store is unusable after it."""
        self.environment.close()

    def __len__(self) -> int:
        with self.environment.begin() as txn:
            return int(txn.stat(self._db[b"records"])["entries"])

    def records(self, doc_ids: Sequence[str]) -> list[bytes | None]:
        """The packed record of each id, `None` where there is none; one snapshot for all."""
        with self.environment.begin(db=self._db[b"records"]) as txn:
            return [txn.get(key_of(doc_id)) for doc_id in doc_ids]

    def texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each id, `None` where none is kept. Raises `DamagedRecordError`."""
        with self.environment.begin(db=self._db[b"texts"]) as txn:
            values = [txn.get(key_of(doc_id)) for doc_id in doc_ids]
        return [
            None if value is None else unpack_text(key_of(doc_id), value)
            for doc_id, value in zip(doc_ids, values, strict=True)
        ]

    def doc_ids(self, numbers: Iterable[int]) -> list[str]:
        """The id behind each first-stage number. Raises `DamagedRecordError` when one is not there."""
        with self.environment.begin(db=self._db[b"numbers"]) as txn:
            return [self._doc_id(txn.get(_NUMBER.pack(number)), number) for number in numbers]

    def _doc_id(self, key: bytes | None, number: int) -> str:
        if key is None:
            raise DamagedRecordError(
                f"{self.path}: the first stage names number {number}, which the store does not hold"
            )
        return key.decode("utf-8")

    def next_number(self) -> int:
        """The number that the next new passage gets."""
        with self.environment.begin(db=self._db[b"meta"]) as txn:
            value = txn.get(NEXT_NUMBER)
        return 0 if value is None else int(_NUMBER.unpack(value)[0])

    def scan(self, database: Literal["records", "texts"]) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every entry in key order, one snapshot."""
        with self.environment.begin(db=self._db[database.encode()]) as txn:
            yield from txn.cursor()

    def keys(self) -> Iterator[bytes]:
        """The key of every record, in order, one snapshot."""
        with self.environment.begin(db=self._db[b"records"]) as txn:
            yield from txn.cursor().iternext(values=False)

    def numbers(self) -> Iterator[tuple[int, str]]:
        """(number, doc id) of every passage, by rising number, one snapshot."""
        with self.environment.begin(db=self._db[b"numbers"]) as txn:
            for number, key in txn.cursor():
                yield int(_NUMBER.unpack(number)[0]), key.decode("utf-8")

    def write(self, entries: Sequence[Entry], next_number: int) -> None:
        """Store a batch and the progress made with it, in one transaction: all of it or nothing."""

        def put_all(txn: lmdb.Transaction) -> None:
            for entry in entries:
                key = key_of(entry.doc_id)
                txn.put(key, entry.record, db=self._db[b"records"])
                txn.put(_NUMBER.pack(entry.number), key, db=self._db[b"numbers"])
                if entry.text is not None:
                    txn.put(key, pack_text(key, entry.text), db=self._db[b"texts"])
            txn.put(NEXT_NUMBER, _NUMBER.pack(next_number), db=self._db[b"meta"])

        write_growing(self.environment, put_all)

    def delete(self, doc_ids: Iterable[str]) -> None:
        """Forget passages: record, text and number of each, in one transaction."""

        def delete_all(txn: lmdb.Transaction) -> None:
            gone = {key_of(doc_id) for doc_id in doc_ids}
            for key in gone:
                txn.delete(key, db=self._db[b"records"])
                txn.delete(key, db=self._db[b"texts"])
            numbers = [number for number, key in txn.cursor(self._db[b"numbers"]) if key in gone]
            for number in numbers:
                txn.delete(number, db=self._db[b"numbers"])

        write_growing(self.environment, delete_all)


def open_environment(path: Path, *, writable: bool, databases: int) -> lmdb.Environment:
    """Open one LMDB file. Raises `StoreError` with the file's name."""
    existing_bytes = path.stat().st_size if path.exists() else 0
    try:
        return lmdb.open(
            str(path),
            subdir=False,
            readonly=not writable,
            lock=writable,  # a published file never changes, so that readers need no lock file beside it
            create=writable,
            max_dbs=databases,
            map_size=max(INITIAL_MAP_BYTES, 2 * existing_bytes),
            readahead=False,
            max_readers=1024,
        )
    except lmdb.Error as exc:
        raise StoreError(f"{path}: cannot be opened: {exc}") from exc


def write_growing(environment: lmdb.Environment, change: Callable[[lmdb.Transaction], _T]) -> _T:
    """Run `change` in one write transaction; when the map is full, double it and run it again.

    Raises:
        StoreError: the disk is full, or the file cannot be written.
    """
    while True:
        try:
            with environment.begin(write=True) as txn:
                return change(txn)
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)
        except lmdb.Error as exc:
            raise StoreError(f"{environment.path()}: cannot be written: {exc}") from exc


def key_of(doc_id: str) -> bytes:
    """The LMDB key of a doc id: its UTF-8 bytes."""
    return doc_id.encode("utf-8")


def pack_text(key: bytes, text: str) -> bytes:
    """Text -> checksummed, compressed bytes."""
    compressed = zstandard.ZstdCompressor().compress(text.encode("utf-8"))
    return _CRC.pack(zlib.crc32(compressed, zlib.crc32(key))) + compressed


def unpack_text(key: bytes, value: bytes) -> str:
    """Inverse of `pack_text`. Raises `DamagedRecordError`."""
    compressed = value[_CRC.size :]
    if len(value) < _CRC.size or _CRC.unpack_from(value)[0] != zlib.crc32(compressed, zlib.crc32(key)):
        raise DamagedRecordError(f"text {key.decode('utf-8', 'replace')!r}: checksum mismatch; run kalm-cache verify")
    return zstandard.ZstdDecompressor().decompress(compressed, max_output_size=MAX_TEXT_BYTES).decode("utf-8")
