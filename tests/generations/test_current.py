"""CURRENT: one line that any damage is noticed in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.generations.current import current_name, write_current

NAMES = ("000001", "000002", "000003")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """000002 is live, and its neighbours are there."""
    for name in NAMES:
        (tmp_path / "generations" / name).mkdir(parents=True)
    write_current(tmp_path, "000002")
    return tmp_path


def test_the_line_has_the_name_and_its_checksum(index: Path):
    assert (index / "CURRENT").read_bytes() == b"000002 crc32:d74864ca\n"  # zlib.crc32(b"000002")
    assert current_name(index) == "000002"
    assert [path.name for path in index.iterdir() if path.is_file()] == ["CURRENT"]


def test_every_flipped_bit_and_every_cut_is_noticed(index: Path):
    valid = (index / "CURRENT").read_bytes()
    flipped = [
        bytes([*valid[:at], valid[at] ^ 1 << bit, *valid[at + 1 :]]) for at in range(len(valid)) for bit in range(8)
    ]
    for damaged in [*flipped, *(valid[:length] for length in range(len(valid))), bytes(len(valid)), valid * 2]:
        (index / "CURRENT").write_bytes(damaged)
        with pytest.raises(StoreError, match="checksum mismatch"):
            current_name(index)


@pytest.mark.parametrize("line", [b"000003 crc32:d74864ca\n", b"000002\n", b"\xff\xfe", b"0000\x001\n", b" "])
def test_a_damaged_line_is_named_with_what_to_run(index: Path, line: bytes):
    (index / "CURRENT").write_bytes(line)
    way_out = f"kalm-cache rollback --to 000003 --index {index}"
    with pytest.raises(
        StoreError, match=rf"{re.escape(str(index))}/CURRENT: checksum mismatch, .*{re.escape(way_out)}"
    ):
        current_name(index)


def test_without_any_generation_the_way_out_is_to_index(tmp_path: Path):
    with pytest.raises(IndexNotFoundError, match="no published index here; run: kalm-cache index CORPUS --index"):
        current_name(tmp_path)
    (tmp_path / "CURRENT").write_bytes(b"")
    with pytest.raises(StoreError, match=r"checksum mismatch, .*; run: kalm-cache index CORPUS --index"):
        current_name(tmp_path)


def test_a_line_that_cannot_be_read_is_a_store_error(tmp_path: Path):
    (tmp_path / "CURRENT").mkdir()
    with pytest.raises(StoreError, match="CURRENT: cannot be read: Is a directory"):
        current_name(tmp_path)
