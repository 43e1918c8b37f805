"""The file beside a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kalm_cache.codec.sensitivity import load_sensitivity
from kalm_cache.errors import CheckpointError
from kalm_cache.model.checkpoint import SENSITIVITY_FILE


def test_a_file_that_is_not_there_is_none(tmp_path: Path):
    assert load_sensitivity(tmp_path / SENSITIVITY_FILE) is None


def test_it_is_read_from_its_file(tmp_path: Path):
    save_file({"sensitivity": np.eye(3, dtype=np.float32)}, tmp_path / SENSITIVITY_FILE)
    np.testing.assert_array_equal(load_sensitivity(tmp_path / SENSITIVITY_FILE), np.eye(3))


@pytest.mark.parametrize("square", [np.ones((2, 3)), np.ones(4), np.full((2, 2), np.nan)])
def test_what_is_no_square_of_finite_numbers_is_refused(tmp_path: Path, square: np.ndarray):
    save_file({"sensitivity": square.astype(np.float32)}, tmp_path / SENSITIVITY_FILE)
    with pytest.raises(CheckpointError, match="not a square of finite numbers"):
        load_sensitivity(tmp_path / SENSITIVITY_FILE)


def test_a_damaged_file_is_named(tmp_path: Path):
    (tmp_path / SENSITIVITY_FILE).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=SENSITIVITY_FILE):
        load_sensitivity(tmp_path / SENSITIVITY_FILE)
