"""The stored form of one passage: a header and a payload, under one checksum. Knows nothing of codecs or LMDB.

Layout, little-endian, 52 bytes and the payload:

    magic "KLMC" · version u8 · codec u8 · flags u16 · ratio u32 · tokens u32 · rows u32 · width u32
    · number i64 · content hash 16 B · crc32 u32 of key + header before it + payload
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from kalm_cache.errors import DamagedRecordError

MAGIC = b"KLMC"
VERSION = 1
FLAG_TRUNCATED = 1
_HEADER = struct.Struct("<4sBBHIIIIq16s")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size


@dataclass(frozen=True, slots=True)
class Record:
    """A passage's pooled states as they are stored.

    codec: number of the codec; ratio: pooling ratio; tokens: real tokens of the passage; rows × width: shape of the
    pooled states; number: the passage's int64 in the first stage; content_hash: 16 bytes that identify its text;
    truncated: whether the passage was cut at max_length.
    """

    codec: int
    ratio: int
    tokens: int
    rows: int
    width: int
    number: int
    content_hash: bytes
    truncated: bool
    payload: bytes | memoryview


def pack_record(key: bytes, record: Record) -> bytes:
    """Record -> bytes to be stored under `key`."""
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        record.codec,
        FLAG_TRUNCATED if record.truncated else 0,
        record.ratio,
        record.tokens,
        record.rows,
        record.width,
        record.number,
        record.content_hash,
    )
    return header + _CRC.pack(_checksum(key, header, record.payload)) + record.payload


def unpack_record(key: bytes, value: bytes | memoryview) -> Record:
    """Bytes stored under `key` -> record; the payload is a view of `value`.

    Raises:
        DamagedRecordError: too short, not a record, another version, or the checksum does not fit key and content.
    """
    shown = key.decode("utf-8", "replace")
    if len(value) < HEADER_BYTES:
        raise DamagedRecordError(f"record {shown!r}: {len(value)} bytes, fewer than its header")
    view = memoryview(value)
    header, payload = view[: _HEADER.size], view[HEADER_BYTES:]
    (crc,) = _CRC.unpack_from(value, _HEADER.size)
    if crc != _checksum(key, header, payload):
        raise DamagedRecordError(f"record {shown!r}: checksum mismatch; run kalm-cache verify")
    magic, version, codec, flags, ratio, tokens, rows, width, number, content_hash = _HEADER.unpack(header)
    if magic != MAGIC or version != VERSION:
        raise DamagedRecordError(f"record {shown!r}: format {magic!r} version {version}, expected {MAGIC!r} {VERSION}")
    truncated = bool(flags & FLAG_TRUNCATED)
    return Record(codec, ratio, tokens, rows, width, number, content_hash, truncated, payload)


def _checksum(key: bytes, header: bytes | memoryview, payload: bytes | memoryview) -> int:
    # the key's length goes in first, so that bytes cannot move between key and header
    return zlib.crc32(payload, zlib.crc32(header, zlib.crc32(key, len(key))))
