"""Blocks: many records or texts in one stored value, each under its own checksum. A record's checksum is verified here,
in `Block.valid_entry`, whenever it is read. A block is a unit of storage, no layer of the model. Knows nothing of LMDB.

An entry has a key of up to 511 bytes, fields of a fixed size for its kind of block, and a payload. Layout,
little-endian, n entries in rising order of their keys, which share the first p bytes:

    magic 4 B, by kind · version u16 · common 12 B, by kind · p u16 · n u32 · crc32 u32 of all before and the directory
    directory:
        payload offsets   u32 × (n + 1)     from the end of the directory
        checksums         u32 × n           crc32 of magic, version, common, fields, key and payload
        fields            by kind × n
        key offsets       u16 × (n + 1)     from the end of the shared bytes
        keys              the shared p bytes, then the rest of each
    payloads, end to end

One entry is found by binary search and read without its neighbours. A found entry is verified by its own checksum,
which covers its key. The directory's checksum is checked only when a key is not found, or when the whole block is read.
Each checksum is seeded with the key's length, so that no byte can move between key and payload.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kalm_cache.errors import DamagedRecordError

VERSION = 1
COMMON_BYTES = 12
MAX_KEYS_BYTES = 0xFFFF  # what a key offset can say
_HEADER = struct.Struct("<4sH12sHI")
_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<4sH12s")  # what every checksum of a block's entries covers
_TWO_OFFSETS = struct.Struct("<II")
_TWO_KEYS = struct.Struct("<HH")
HEADER_BYTES = _HEADER.size + _CRC.size
EMPTY_BYTES = HEADER_BYTES + 6  # of a block without entries: its two first offsets
ENTRY_BYTES = 10  # of an entry, beside its key, fields and payload

Buffer = bytes | memoryview


class Kind(NamedTuple):
    """What a block holds. `show`: what messages call the entry under a key."""

    magic: bytes
    field_bytes: int
    show: Callable[[bytes], str]


class Entry(NamedTuple):
    """One entry of a block, its checksum as it is stored; the payload is a view of the block."""

    key: bytes
    fields: bytes
    payload: memoryview
    crc: int


def checksum(kind: Kind, common: bytes, key: bytes, fields: bytes, payload: Buffer) -> int:
    """The checksum of one entry."""
    return _checksum(_HEAD.pack(kind.magic, VERSION, common), key, fields, payload)


def _checksum(head: bytes, key: bytes, fields: bytes, payload: Buffer) -> int:
    return zlib.crc32(payload, zlib.crc32(b"".join((head, fields, key)), len(key)))


class BlockBuilder:
    """Entries of one block, in rising order of their keys; `size_bytes` is what `pack` will give at most."""

    def __init__(self, kind: Kind, common: bytes) -> None:
        self.kind, self.common = kind, common
        self.size_bytes, self.keys_bytes = EMPTY_BYTES, 0
        self.keys: list[bytes] = []
        self._fields: list[bytes] = []
        self._payloads: list[Buffer] = []
        self._crcs: list[int] = []

    def add(self, key: bytes, fields: bytes, payload: Buffer, crc: int) -> None:
        """Append an entry; `crc` is its `checksum`. Views are read when the block is packed."""
        self.keys.append(key)
        self._fields.append(fields)
        self._payloads.append(payload)
        self._crcs.append(crc)
        self.keys_bytes += len(key)
        self.size_bytes += self.added_bytes(key, payload)

    def added_bytes(self, key: bytes, payload: Buffer) -> int:
        """What an entry adds to the block, at most: shared bytes of keys are stored once."""
        return ENTRY_BYTES + self.kind.field_bytes + len(key) + len(payload)

    def pack(self) -> bytes:
        """The block."""
        count, prefix = len(self.keys), _shared(self.keys[0], self.keys[-1])
        suffixes = [key[len(prefix) :] for key in self.keys]
        header = _HEADER.pack(self.kind.magic, VERSION, self.common, len(prefix), count)
        directory = b"".join(
            (
                struct.pack(f"<{count + 1}I", *_offsets(self._payloads)),
                struct.pack(f"<{count}I", *self._crcs),
                *self._fields,
                struct.pack(f"<{count + 1}H", *_offsets(suffixes)),
                prefix,
                *suffixes,
            )
        )
        crc = _CRC.pack(zlib.crc32(directory, zlib.crc32(header)))
        return b"".join((header, crc, directory, *self._payloads))


class Block:
    """A packed block, read in place. Opening it checks that the directory lies within it; `valid_entry`, checksums."""

    __slots__ = (
        "_crcs_at",
        "_fields_at",
        "_key_offsets_at",
        "_payloads_at",
        "_suffixes_at",
        "_value",
        "common",
        "count",
        "kind",
        "prefix",
    )

    def __init__(self, kind: Kind, value: Buffer) -> None:
        """Raises `DamagedRecordError` for what is no block of this kind and version."""
        view = memoryview(value)
        if len(view) < EMPTY_BYTES:
            raise DamagedRecordError(f"{len(view)} bytes, fewer than a block's header")
        magic, version, self.common, prefix_bytes, count = _HEADER.unpack_from(view)
        if magic != kind.magic or version != VERSION:
            raise DamagedRecordError(
                f"block format {magic!r} version {version}, expected {kind.magic!r} {VERSION}; run kalm-cache verify"
            )
        self.kind, self.count, self._value = kind, int(count), view
        self._crcs_at = HEADER_BYTES + 4 * (self.count + 1)
        self._fields_at = self._crcs_at + 4 * self.count
        self._key_offsets_at = self._fields_at + kind.field_bytes * self.count
        self._suffixes_at = self._key_offsets_at + 2 * (self.count + 1) + prefix_bytes
        if self._suffixes_at > len(view):
            raise DamagedRecordError(f"a directory of {self.count} entries does not fit the block's {len(view)} bytes")
        self.prefix = bytes(view[self._suffixes_at - prefix_bytes : self._suffixes_at])
        (last,) = struct.unpack_from("<H", view, self._key_offsets_at + 2 * self.count)
        self._payloads_at = self._suffixes_at + last

    def __len__(self) -> int:
        return self.count

    def find(self, key: bytes) -> int | None:
        """The place of the entry under `key`."""
        if not key.startswith(self.prefix):
            return None
        wanted = key[len(self.prefix) :]
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self._suffix(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low if low < self.count and self._suffix(low) == wanted else None

    def key(self, i: int) -> bytes:
        """The key of entry `i`."""
        return self.prefix + self._suffix(i)

    def _suffix(self, i: int) -> bytes:
        start, end = _TWO_KEYS.unpack_from(self._value, self._key_offsets_at + 2 * i)
        return bytes(self._value[self._suffixes_at + start : self._suffixes_at + end])

    def fields(self, i: int) -> bytes:
        """The fields of entry `i`, unchecked."""
        start = self._fields_at + self.kind.field_bytes * i
        return bytes(self._value[start : start + self.kind.field_bytes])

    def span(self, i: int) -> tuple[int, int]:
        """Where the payload of entry `i` lies in the block, unchecked."""
        start, end = _TWO_OFFSETS.unpack_from(self._value, HEADER_BYTES + 4 * i)
        return self._payloads_at + start, self._payloads_at + end

    def entry(self, i: int) -> Entry:
        """Entry `i`, unchecked."""
        start, end = self.span(i)
        payload = self._value[start:end]
        (crc,) = _CRC.unpack_from(self._value, self._crcs_at + 4 * i)
        return Entry(self.key(i), self.fields(i), payload, crc)

    def valid_entry(self, i: int) -> Entry:
        """Entry `i`, verified. Raises `DamagedRecordError` when its checksum does not fit key, fields and payload."""
        entry = self.entry(i)
        head = bytes(self._value[: _HEAD.size])
        if entry.crc != _checksum(head, entry.key, entry.fields, entry.payload):
            raise DamagedRecordError(f"{self.kind.show(entry.key)}: checksum mismatch; run kalm-cache verify")
        return entry

    def check_directory(self) -> None:
        """Raise `DamagedRecordError` unless header and directory are those that were written."""
        (crc,) = _CRC.unpack_from(self._value, _HEADER.size)
        header, directory = self._value[: _HEADER.size], self._value[HEADER_BYTES : self._payloads_at]
        if crc != zlib.crc32(directory, zlib.crc32(header)):
            raise DamagedRecordError("a block's directory has a checksum mismatch; run kalm-cache verify")

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, in order, unchecked."""
        return map(self.entry, range(self.count))


def _shared(first: bytes, last: bytes) -> bytes:
    """The bytes with which both begin."""
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _offsets(parts: list[bytes] | list[Buffer]) -> list[int]:
    offsets, total = [0], 0
    for part in parts:
        total += len(part)
        offsets.append(total)
    return offsets
