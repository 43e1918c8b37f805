"""Records: a passage's pooled states as they are stored, as entries of blocks. Knows nothing of codecs or LMDB.

A block's common bytes are those of all its records, little-endian: codec u32 · chunk size u32 · width u32. An entry's
fields are its tokens u32, the highest bit set when the passage was cut. The rest follows: rows = ceil(tokens / chunk
size). The checksum of a record is verified where its block is read: checksummed_block.py.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from kalm_cache.errors import DamagedRecordError
from kalm_cache.storage.checksummed_block import Buffer, Kind

STATES = Kind(b"KLMS", 4, lambda key: f"record {key.decode('utf-8', 'replace')!r}")
_COMMON = struct.Struct("<III")
_FIELDS = struct.Struct("<I")
_TRUNCATED = 1 << 31
MAX_TOKENS = _TRUNCATED - 1


class Record(NamedTuple):
    """A passage's pooled states as they are stored.

    codec: number of the codec; chunk_size: tokens of a pooled state; width: D; tokens: real tokens of the passage;
    truncated: whether it was cut at max_length.
    """

    codec: int
    chunk_size: int
    width: int
    tokens: int
    truncated: bool
    payload: Buffer

    @property
    def rows(self) -> int:
        """P, how many pooled states there are."""
        return -(-self.tokens // self.chunk_size)

    @property
    def common(self) -> bytes:
        """What a block's records share, `COMMON_BYTES`."""
        return _COMMON.pack(self.codec, self.chunk_size, self.width)

    @property
    def fields(self) -> bytes:
        """What is the record's own, beside its payload."""
        return _FIELDS.pack(self.tokens | _TRUNCATED if self.truncated else self.tokens)


def unpack_record(common: bytes, fields: bytes, payload: Buffer) -> Record:
    """Inverse of `Record.common` and `Record.fields`."""
    codec, chunk_size, width = _COMMON.unpack(common)
    (tokens,) = _FIELDS.unpack(fields)
    return Record(codec, chunk_size, width, tokens & MAX_TOKENS, bool(tokens & _TRUNCATED), payload)


class Records(Protocol):
    """The records of a store at one moment."""

    def records(self, doc_ids: Sequence[str]) -> list[Record | DamagedRecordError | None]:
        """The record of each id; `None` where the store has no such passage, the error where it is damaged."""


class RecordStore(Protocol):
    """One segment (`PassageStore`), or several (`SegmentSet`)."""

    def snapshot(self) -> AbstractContextManager[Records]:
        """Records in place."""
