"""The list of what is stored and not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.errors import StoreError
from kalm_cache.generations.tombstones import Tombstones, read_tombstones, unpack_tombstones

THREE = Tombstones.nothing().adding([(7, b"seven", True), (3, "drei/ü".encode(), False), (5, b"\xff" * 511, True)])


def test_numbers_rise_and_each_has_its_key_and_its_reason():
    assert THREE.ordinals.tolist() == [3, 5, 7]
    assert THREE.keys == ["drei/ü".encode(), b"\xff" * 511, b"seven"]
    assert THREE.deleted.tolist() == [False, True, True]
    more = THREE.adding([(4, b"four", True), (7, b"seven", True)])
    assert more.ordinals.tolist() == [3, 4, 5, 7]  # the same one twice is one
    assert len(more) == 4


def test_the_file_has_the_layout_that_it_says():
    one = Tombstones.nothing().adding([(258, b"ab", True)]).pack()
    assert one[:6] == b"KLMH\x01\x00"
    assert one[10:] == b"\x01\0\0\0" + b"\x02\x01\0\0\0\0\0\0" + b"\x01" + b"\x02\x00" + b"ab"


@pytest.mark.parametrize("tombstones", [Tombstones.nothing(), THREE])
def test_a_list_reads_back_as_it_was_written(tombstones: Tombstones):
    again = unpack_tombstones(tombstones.pack(), "file")
    assert again.ordinals.tolist() == tombstones.ordinals.tolist()
    assert (again.keys, again.deleted.tolist()) == (tombstones.keys, tombstones.deleted.tolist())


def test_ranges_of_numbers_are_cut_out():
    assert THREE.between(3, 7).ordinals.tolist() == [3, 5]
    assert THREE.between(4, 5).keys == []
    assert THREE.between(0, 100).keys == THREE.keys


def test_every_flipped_bit_and_every_cut_is_refused():
    content = THREE.pack()
    assert len(content) > 3 * 8
    for i in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[i // 8] ^= 1 << i % 8
        with pytest.raises(StoreError, match=r"hidden\.bin: checksum mismatch"):
            unpack_tombstones(bytes(flipped), "hidden.bin")
    for length in range(len(content)):
        with pytest.raises(StoreError, match=r"^hidden\.bin: "):
            unpack_tombstones(content[:length], "hidden.bin")


def test_a_folder_without_a_list_hides_nothing(tmp_path: Path):
    assert len(read_tombstones(tmp_path)) == 0
    (tmp_path / "hidden.bin").mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        read_tombstones(tmp_path)
