"""The record layout, written out by hand, and what its checksum catches."""

from __future__ import annotations

import struct
import zlib

import pytest

from kalm_cache.errors import DamagedRecordError
from kalm_cache.record import HEADER_BYTES, Record, pack_record, unpack_record

KEY = b"doc-7"
RECORD = Record(
    codec=2,
    ratio=4,
    tokens=9,
    rows=3,
    width=640,
    number=2**40 + 1,
    content_hash=bytes(range(16)),
    truncated=True,
    payload=b"payload \x00\xff",
)


def by_hand(key: bytes, record: Record, *, magic: bytes = b"KLMC", version: int = 1) -> bytes:
    header = magic
    header += struct.pack("<BB", version, record.codec)
    header += struct.pack("<H", 1 if record.truncated else 0)
    header += struct.pack("<IIII", record.ratio, record.tokens, record.rows, record.width)
    header += struct.pack("<q", record.number)
    header += record.content_hash
    payload = bytes(record.payload)
    return header + struct.pack("<I", zlib.crc32(key + header + payload, len(key))) + payload


def flipped(content: bytes, bit: int) -> bytes:
    spoiled = bytearray(content)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


def is_damaged(key: bytes, value: bytes) -> bool:
    try:
        unpack_record(key, value)
    except DamagedRecordError:
        return True
    return False


def test_a_record_is_laid_out_as_documented():
    assert pack_record(KEY, RECORD) == by_hand(KEY, RECORD)
    assert len(pack_record(KEY, RECORD)) == 52 + len(RECORD.payload)
    assert HEADER_BYTES == 52


def test_unpacking_gives_back_every_field():
    assert unpack_record(KEY, pack_record(KEY, RECORD)) == RECORD


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_records_unpack_from_any_buffer(view):
    assert bytes(unpack_record(KEY, view(pack_record(KEY, RECORD))).payload) == RECORD.payload


def test_payloads_may_be_empty_and_views():
    empty = Record(1, 1, 1, 0, 8, 0, bytes(16), False, memoryview(b""))
    assert unpack_record(b"", pack_record(b"", empty)) == empty


def test_every_flipped_bit_of_a_record_is_detected():
    packed = pack_record(KEY, RECORD)
    assert [bit for bit in range(8 * len(packed)) if not is_damaged(KEY, flipped(packed, bit))] == []


def test_every_flipped_bit_of_its_key_is_detected():
    packed = pack_record(KEY, RECORD)
    assert [bit for bit in range(8 * len(KEY)) if not is_damaged(flipped(KEY, bit), packed)] == []


def test_every_truncation_is_detected():
    packed = pack_record(KEY, RECORD)
    assert [length for length in range(len(packed)) if not is_damaged(KEY, packed[:length])] == []


def test_bytes_behind_a_record_are_detected():
    assert is_damaged(KEY, pack_record(KEY, RECORD) + b"\0")


def test_a_record_under_another_key_is_detected():
    packed = pack_record(KEY, RECORD)
    assert all(is_damaged(key, packed) for key in (b"doc-8", b"doc-", b"doc-7K", b""))


def test_an_unknown_version_or_magic_is_refused_with_both_sides_named():
    with pytest.raises(DamagedRecordError, match=r"record 'doc-7': format b'KLMC' version 2, expected b'KLMC' 1"):
        unpack_record(KEY, by_hand(KEY, RECORD, version=2))
    with pytest.raises(DamagedRecordError, match=r"format b'NOPE' version 1, expected b'KLMC' 1"):
        unpack_record(KEY, by_hand(KEY, RECORD, magic=b"NOPE"))


def test_messages_name_the_record_and_the_way_out():
    with pytest.raises(DamagedRecordError, match="record 'doc-7': 51 bytes, fewer than its header"):
        unpack_record(KEY, pack_record(KEY, RECORD)[:51])
    with pytest.raises(DamagedRecordError, match="record 'doc-7': checksum mismatch; run kalm-cache verify"):
        unpack_record(KEY, flipped(pack_record(KEY, RECORD), 400))
