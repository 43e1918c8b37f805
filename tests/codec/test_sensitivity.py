"""The file beside a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kalm_cache.codec.sensitivity import SENSITIVITY_FILE, load_sensitivity
from kalm_cache.errors import CheckpointError


def test_a_folder_without_the_file_has_none(tmp_path: Path):
    assert load_sensitivity(tmp_path) is None


def test_it_is_read_from_its_folder_or_by_its_name(tmp_path: Path):
    save_file({"sensitivity": np.eye(3, dtype=np.float32)}, tmp_path / SENSITIVITY_FILE)
    for place in (tmp_path, tmp_path / SENSITIVITY_FILE):
        np.testing.assert_array_equal(load_sensitivity(place), np.eye(3))


@pytest.mark.parametrize("square", [np.ones((2, 3)), np.ones(4), np.full((2, 2), np.nan)])
def test_what_is_no_square_of_finite_numbers_is_refused(tmp_path: Path, square: np.ndarray):
    save_file({"sensitivity": square.astype(np.float32)}, tmp_path / SENSITIVITY_FILE)
    with pytest.raises(CheckpointError, match="not a square of finite numbers"):
        load_sensitivity(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / SENSITIVITY_FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=SENSITIVITY_FILE):
        load_sensitivity(tmp_path)
