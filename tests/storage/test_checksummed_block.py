"""The block layout, written out by hand, and what its checksums catch."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from kalm_cache.errors import DamagedRecordError
from kalm_cache.storage.checksummed_block import (
    EMPTY_BYTES,
    ENTRY_BYTES,
    HEADER_BYTES,
    Block,
    BlockBuilder,
    Kind,
    checksum,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "states.block"
KIND = Kind(b"KLMX", 2, lambda key: f"thing {key!r}")
COMMON = bytes(range(12))
ENTRIES = [(b"doc-1", b"f1", b"payload one"), (b"doc-12", b"f2", b""), (b"doc-7\xff", b"f3", b"\0" * 5)]


def pack(entries: list[tuple[bytes, bytes, bytes]], kind: Kind = KIND, common: bytes = COMMON) -> bytes:
    builder = BlockBuilder(kind, common)
    for key, fields, payload in entries:
        builder.add(key, fields, payload, checksum(kind, common, key, fields, payload))
    return builder.pack()


def by_hand(kind: Kind, common: bytes, prefix: bytes, entries: list[tuple[bytes, bytes, bytes]]) -> bytes:
    head = kind.magic + struct.pack("<H", 1) + common
    crcs = [zlib.crc32(head + fields + key + payload, len(key)) for key, fields, payload in entries]
    directory = struct.pack("<I", 0)
    for i in range(len(entries)):
        directory += struct.pack("<I", sum(len(payload) for _, _, payload in entries[: i + 1]))
    directory += struct.pack(f"<{len(crcs)}I", *crcs)
    directory += b"".join(fields for _, fields, _ in entries)
    directory += struct.pack("<H", 0)
    for i in range(len(entries)):
        directory += struct.pack("<H", sum(len(key) - len(prefix) for key, _, _ in entries[: i + 1]))
    directory += prefix + b"".join(key[len(prefix) :] for key, _, _ in entries)
    header = head + struct.pack("<HI", len(prefix), len(entries))
    crc = struct.pack("<I", zlib.crc32(header + directory))
    return header + crc + directory + b"".join(payload for _, _, payload in entries)


def flipped(content: bytes, bit: int) -> bytes:
    spoiled = bytearray(content)
    spoiled[bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)


def outcome(value: bytes, key: bytes) -> object:
    """What a reader who looks up `key` gets: the entry's content, `None` or the damage."""
    try:
        block = Block(KIND, value)
        place = block.find(key)
        if place is None:
            block.check_directory()
            return None
        entry = block.valid_entry(place)
        return entry.fields, bytes(entry.payload), block.common
    except DamagedRecordError:
        return "damaged"


def test_a_block_is_laid_out_as_documented():
    packed = pack(ENTRIES)
    assert packed == by_hand(KIND, COMMON, b"doc-", ENTRIES)
    assert (HEADER_BYTES, EMPTY_BYTES, ENTRY_BYTES) == (28, 34, 10)
    keys = len(b"doc-" + b"1" + b"12" + b"7\xff")
    assert len(packed) == EMPTY_BYTES + 3 * (ENTRY_BYTES + 2) + keys + len(b"payload one") + 5


def test_the_builder_knows_the_size_that_a_block_has_at_most():
    builder = BlockBuilder(KIND, COMMON)
    for key, fields, payload in ENTRIES:
        builder.add(key, fields, payload, 0)
    assert builder.size_bytes - len(builder.pack()) == 2 * len(b"doc-")  # shared bytes are stored once
    assert builder.keys_bytes == sum(len(key) for key, _, _ in ENTRIES)


def test_a_block_of_states_has_the_bytes_that_it_always_had():
    from kalm_cache.storage.record import STATES, Record, unpack_record

    records = [Record(7, 4, 640, 9, False, b"first"), Record(7, 4, 640, 1024, True, b"second \xff")]
    entries = [(key, one.fields, bytes(one.payload)) for key, one in zip([b"p1", b"p2"], records, strict=True)]
    assert pack(entries, STATES, records[0].common) == GOLDEN.read_bytes()
    block = Block(STATES, GOLDEN.read_bytes())
    block.check_directory()
    read = [block.valid_entry(i) for i in range(2)]
    assert [unpack_record(block.common, entry.fields, bytes(entry.payload)) for entry in read] == records


def test_entries_are_found_by_their_keys_and_no_others_are():
    block = Block(KIND, pack(ENTRIES))
    block.check_directory()
    assert [block.find(key) for key, _, _ in ENTRIES] == [0, 1, 2]
    assert [block.key(i) for i in range(len(block))] == [key for key, _, _ in ENTRIES]
    for absent in (b"", b"doc", b"doc-", b"doc-0", b"doc-11", b"doc-13", b"doc-7", b"doc-7\xff\0", b"zzz"):
        assert block.find(absent) is None
    assert [(entry.key, entry.fields, bytes(entry.payload)) for entry in block] == ENTRIES


@pytest.mark.parametrize("count", [1, 2, 3, 100, 1000])
def test_entries_are_found_in_blocks_of_any_size(count: int):
    entries = [(b"%d" % i, b"ff", b"%d" % i) for i in sorted(range(count), key=str)]
    block = Block(KIND, pack(entries))
    for place, (key, _, payload) in enumerate(entries):
        assert block.find(key) == place
        assert bytes(block.valid_entry(place).payload) == payload
    assert block.find(b"%d" % count) is None


@pytest.mark.parametrize("view", [bytes, memoryview, lambda packed: memoryview(bytearray(packed))])
def test_blocks_are_read_from_any_buffer_without_a_copy(view):
    payload = Block(KIND, view(pack(ENTRIES))).valid_entry(0).payload
    assert isinstance(payload, memoryview)
    assert payload == b"payload one"


def test_a_lookup_in_a_block_with_any_bit_flipped_finds_what_was_stored_or_damage():
    packed = pack(ENTRIES)
    assert len(packed) > 50
    valid = {key: (fields, payload, COMMON) for key, fields, payload in ENTRIES}
    for bit in range(8 * len(packed)):
        spoiled = flipped(packed, bit)
        for key, right in valid.items():
            assert outcome(spoiled, key) in (right, "damaged")
        assert outcome(spoiled, b"doc-5") in (None, "damaged")


def test_every_flipped_bit_of_a_block_is_seen_by_who_reads_all_of_it():
    packed = pack(ENTRIES)
    assert len(packed) > 50
    for bit in range(8 * len(packed)):
        with pytest.raises(DamagedRecordError):
            block = Block(KIND, flipped(packed, bit))
            block.check_directory()
            list(map(block.valid_entry, range(len(block))))


def test_every_truncation_is_detected_by_the_entries_that_it_touches():
    packed = pack(ENTRIES)
    for length in range(len(packed)):
        assert outcome(packed[:length], b"doc-7\xff") == "damaged"
    assert outcome(packed[:-1], b"doc-1") == (b"f1", b"payload one", COMMON)


def test_bytes_cannot_move_between_key_and_payload():
    crc = checksum(KIND, COMMON, b"ab", b"ff", b"cd")
    assert checksum(KIND, COMMON, b"abc", b"ff", b"d") != crc
    assert checksum(KIND, COMMON, b"a", b"ff", b"bcd") != crc
    assert checksum(KIND, bytes(12), b"ab", b"ff", b"cd") != crc
    assert checksum(KIND._replace(magic=b"KLMY"), COMMON, b"ab", b"ff", b"cd") != crc


def test_another_kind_version_or_no_block_at_all_is_refused_with_both_sides_named():
    packed = pack(ENTRIES)
    with pytest.raises(DamagedRecordError, match=r"block format b'KLMX' version 1, expected b'KLMY' 1"):
        Block(KIND._replace(magic=b"KLMY"), packed)
    with pytest.raises(DamagedRecordError, match=r"block format b'KLMX' version 2, expected b'KLMX' 1"):
        Block(KIND, packed[:4] + b"\2\0" + packed[6:])
    with pytest.raises(DamagedRecordError, match="33 bytes, fewer than a block's header"):
        Block(KIND, packed[:33])
    with pytest.raises(DamagedRecordError, match=r"a directory of \d+ entries does not fit"):
        Block(KIND, packed[:20] + b"\xff\xff\xff\xff" + packed[24:])


def test_messages_name_the_entry_and_the_way_out():
    packed = pack(ENTRIES)
    spoiled = Block(KIND, packed[:-1] + b"!")
    with pytest.raises(DamagedRecordError, match=r"thing b'doc-7\\xff': checksum mismatch; run kalm-cache verify"):
        spoiled.valid_entry(2)
    assert bytes(spoiled.valid_entry(0).payload) == b"payload one"  # its neighbours are whole
