"""Records of the text cache ↔ blocks of those that were written together. Knows nothing of LMDB or files.

A record's fields are its tokens and when its states were computed; its codec, chunk size and width are its block's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kalm_cache.errors import DamagedRecordError
from kalm_cache.storage.block_file import PAGE_BYTES
from kalm_cache.storage.checksummed_block import Block, BlockBuilder, Kind, checksum
from kalm_cache.storage.record import MAX_TOKENS, Record

BLOCK_BYTES = 16 * PAGE_BYTES - 16  # a value's first page begins with LMDB's header of 16 B
_FIELDS = struct.Struct("<II")  # tokens, highest bit: was cut; when the states were computed, seconds since 1970
_TRUNCATED = MAX_TOKENS + 1
_COMMON = struct.Struct("<III")
CACHED = Kind(b"KLMC", _FIELDS.size, lambda key: f"cached record {key.hex()[:16]}")


class Put(NamedTuple):
    """A record to write. `written`: when its states were computed, seconds; `replace`: what is under the key now."""

    key: bytes
    record: Record
    written: int
    replace: bool = False


def pack_blocks(puts: list[Put]) -> Iterator[tuple[list[bytes], bytes]]:
    """Records → (keys, block), each block of one codec, chunk size and width, in the order of their keys."""
    builder: BlockBuilder | None = None
    for put in sorted(puts, key=lambda put: (put.record.common, put.key)):
        common, fields = put.record.common, _fields_of(put)
        if builder is not None and not _fits(builder, common, put):
            yield builder.keys, builder.pack()
            builder = None
        builder = builder or BlockBuilder(CACHED, common)
        crc = checksum(CACHED, common, put.key, fields, put.record.payload)
        builder.add(put.key, fields, put.record.payload, crc)
    if builder is not None:
        yield builder.keys, builder.pack()


def _fits(builder: BlockBuilder, common: bytes, put: Put) -> bool:
    added = builder.added_bytes(put.key, put.record.payload)
    return builder.common == common and builder.size_bytes + added <= BLOCK_BYTES


def _fields_of(put: Put) -> bytes:
    tokens = put.record.tokens | (_TRUNCATED if put.record.truncated else 0)
    return _FIELDS.pack(tokens, put.written)


def record_of(value: memoryview, key: bytes) -> tuple[Record, int]:
    """The record under `key` in a block, its payload copied, and when it was written. Raises `DamagedRecordError`."""
    block = Block(CACHED, value)
    place = block.find(key)
    if place is None:
        block.check_directory()
        raise DamagedRecordError(f"{CACHED.show(key)}: its block does not hold it")
    entry = block.valid_entry(place)
    tokens, written = _FIELDS.unpack(entry.fields)
    codec, chunk_size, width = _COMMON.unpack(block.common)
    payload = bytes(entry.payload)  # the page is LMDB's again after the transaction
    return Record(codec, chunk_size, width, tokens & MAX_TOKENS, bool(tokens & _TRUNCATED), payload), written


def keys_of(value: bytes) -> list[bytes]:
    """The keys of a block; of a damaged one, what can be read: the index finds nothing else under wrong ones."""
    try:
        block = Block(CACHED, value)
        return [block.key(i) for i in range(len(block))]
    except (DamagedRecordError, struct.error):
        return []


def times_of(value: bytes) -> list[int]:
    """When the records of a block were written."""
    try:
        block = Block(CACHED, value)
        return [_FIELDS.unpack(block.fields(i))[1] for i in range(len(block))]
    except (DamagedRecordError, struct.error):
        return [0]
