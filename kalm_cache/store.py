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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lmdb
import zstandard

from kalm_cache.errors import DamagedRecordError
from kalm_cache.lmdb_file import LmdbFile, join_readers, leave_readers

DATABASES = ("records", "texts", "numbers", "meta")
NEXT_NUMBER = b"next_number"
MAX_TEXT_BYTES = 1 << 30
_NUMBER = struct.Struct(">q")
_CRC = struct.Struct("<I")
Database = Literal["records", "texts", "numbers"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written for one passage: packed record, its number, and its text unless the index keeps none."""

    doc_id: str
    number: int
    record: bytes
    text: str | None


class PassageStore:
    """Access to a shard file; a context manager. `writable=False` never locks nor changes the file, and any number of
    stores may read one file at the same time."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open (and with `writable`, create) the file. Raises `StoreError` when it cannot be opened."""
        self.path = path
        self._shared = not writable
        self._file = LmdbFile(path, DATABASES, writable=True) if writable else join_readers(path, DATABASES)
        self._closed = False

    def __enter__(self) -> PassageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the file; the store is unusable after it. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._shared:
            leave_readers(self._file)
        else:
            self._file.close()

    def __len__(self) -> int:
        return self.count("records")

    def count(self, database: Database) -> int:
        """How many entries a database has."""
        with self._file.reading(database) as txn:
            return int(txn.stat(self._file[database])["entries"])

    def records(self, doc_ids: Sequence[str]) -> list[bytes | None]:
        """The packed record of each id, `None` where there is none; one snapshot for all."""
        with self._file.reading("records") as txn:
            return [_get(txn, key_of(doc_id)) for doc_id in doc_ids]

    def texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each id, `None` where none is kept. Raises `DamagedRecordError`."""
        with self._file.reading("texts") as txn:
            values = [_get(txn, key_of(doc_id)) for doc_id in doc_ids]
        return [
            None if value is None else unpack_text(key_of(doc_id), value)
            for doc_id, value in zip(doc_ids, values, strict=True)
        ]

    def doc_ids(self, numbers: Iterable[int]) -> list[str]:
        """The id behind each first-stage number. Raises `DamagedRecordError` when one is not there."""
        with self._file.reading("numbers") as txn:
            return [self._doc_id(txn.get(_NUMBER.pack(number)), number) for number in numbers]

    def _doc_id(self, key: bytes | None, number: int) -> str:
        if key is None:
            raise DamagedRecordError(f"{self.path}: number {number} is not there; run kalm-cache verify")
        return doc_id_of(key)

    def next_number(self) -> int:
        """The number that the next new passage gets."""
        with self._file.reading("meta") as txn:
            value = txn.get(NEXT_NUMBER)
        return 0 if value is None else number_of(value)

    def scan(self, database: Database) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of every entry in key order, one snapshot."""
        with self._file.reading(database) as txn:
            yield from txn.cursor()

    def keys(self) -> Iterator[bytes]:
        """The key of every record, in order, one snapshot."""
        with self._file.reading("records") as txn:
            yield from txn.cursor().iternext(values=False)

    def numbers(self) -> Iterator[tuple[int, str]]:
        """(number, doc id) of every passage, by rising number, one snapshot."""
        for number, key in self.scan("numbers"):
            yield number_of(number), doc_id_of(key)

    def write(self, entries: Sequence[Entry], next_number: int) -> None:
        """Store a batch and the progress made with it, in one transaction: all of it or nothing."""

        def put_all(txn: lmdb.Transaction[bytes]) -> None:
            for entry in entries:
                key = key_of(entry.doc_id)
                txn.put(key, entry.record, db=self._file["records"])
                txn.put(_NUMBER.pack(entry.number), key, db=self._file["numbers"])
                if entry.text is not None:
                    txn.put(key, pack_text(key, entry.text), db=self._file["texts"])
            txn.put(NEXT_NUMBER, _NUMBER.pack(next_number), db=self._file["meta"])

        self._file.write(put_all)

    def delete(self, doc_ids: Iterable[str]) -> None:
        """Forget passages: record, text and number of each, in one transaction."""
        gone = {key_of(doc_id) for doc_id in doc_ids}

        def delete_all(txn: lmdb.Transaction[bytes]) -> None:
            for key in gone:
                txn.delete(key, db=self._file["records"])
                txn.delete(key, db=self._file["texts"])
            numbers = [number for number, key in txn.cursor(self._file["numbers"]) if key in gone]
            for number in numbers:
                txn.delete(number, db=self._file["numbers"])

        self._file.write(delete_all)


def key_of(doc_id: str) -> bytes:
    """The LMDB key of a doc id: its UTF-8 bytes. Half a surrogate pair, which no corpus may hold, gets a key too."""
    return doc_id.encode("utf-8", "surrogatepass")


def doc_id_of(key: bytes) -> str:
    """Inverse of `key_of`. Raises `DamagedRecordError`."""
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise DamagedRecordError(f"id {key!r} is not UTF-8; run kalm-cache verify") from exc


def number_of(value: bytes) -> int:
    """A number as LMDB keeps it -> int. Raises `DamagedRecordError`."""
    if len(value) != _NUMBER.size:
        raise DamagedRecordError(f"number {value!r} has {len(value)} bytes, not 8; run kalm-cache verify")
    return int(_NUMBER.unpack(value)[0])


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


def _get(txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
    return txn.get(key) if key else None  # LMDB raises for an empty key
