"""Arrays in memory: what numpy.save wrote, without a descriptor that stays open."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kalm_cache.storage.arrays.rows import COPIED_BYTES, load_row

LARGE = COPIED_BYTES // 8 + 1


def is_open(path: Path) -> bool:
    """Whether this process has a descriptor of the file."""
    return str(path) in {os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("length", [0, 3, LARGE])
def test_an_array_is_what_was_saved_and_keeps_no_file_open(tmp_path: Path, length: int):
    saved = np.arange(length, dtype=np.int64) * 3
    np.save(tmp_path / "row.npy", saved)
    with (tmp_path / "row.npy").open("rb"):
        assert is_open(tmp_path / "row.npy")
    read = load_row(tmp_path / "row.npy", [np.int64, np.float64], mapped=True)
    assert not is_open(tmp_path / "row.npy")
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, saved)


def test_a_mapped_array_outlives_the_name_of_its_file_and_cannot_be_written(tmp_path: Path):
    np.save(tmp_path / "row.npy", np.ones(LARGE))
    read = load_row(tmp_path / "row.npy", [np.int64, np.float64], mapped=True)
    (tmp_path / "row.npy").unlink()
    assert read.sum() == LARGE
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 2


def test_a_large_file_that_was_cut_is_refused(tmp_path: Path):
    np.save(tmp_path / "row.npy", np.ones(2 * LARGE))
    path = tmp_path / "row.npy"
    path.write_bytes(path.read_bytes()[: 8 * LARGE + 200])
    with pytest.raises(ValueError, match=r"row\.npy is no array of numpy"):
        load_row(path, [np.int64, np.float64], mapped=True)


def test_a_large_file_that_is_no_array_is_refused(tmp_path: Path):
    (tmp_path / "row.npy").write_bytes(b"x" * 8 * LARGE)
    with pytest.raises(ValueError, match=r"row\.npy is no array of numpy"):
        load_row(tmp_path / "row.npy", [np.int64, np.float64], mapped=True)
