"""The rotation: exact, its own inverse, and the same for every width."""

from __future__ import annotations

import numpy as np
import pytest

from kalm_cache.codec.levels import levels
from kalm_cache.codec.rotation import MAX_BLOCK, blocks, hadamard, signs


@pytest.mark.parametrize(
    ("width", "sizes"),
    [
        (640, [512, 128]),
        (1152, [1024, 128]),
        (2560, [2048, 512]),
        (384, [256, 128]),
        (7, [4, 2, 1]),
        (4096, [2048] * 2),
    ],
)
def test_a_width_is_cut_into_the_largest_powers_of_two(width: int, sizes: list[int]):
    assert [block.stop - block.start for block in blocks(width)] == sizes
    assert [block.start for block in blocks(width)] == np.cumsum([0, *sizes[:-1]]).tolist()


def test_four_values_by_hand():
    # rows of H(4): ++++, +-+-, ++--, +--+
    np.testing.assert_array_equal(hadamard(np.array([[1, 2, 3, 5]], np.float32)), [[11, -3, -5, 1]])


@pytest.mark.parametrize("size", [1, 2, 64, 128, 256, 512, 1024, 2048])
def test_products_of_the_largest_integers_are_exact(size: int):
    largest = np.random.default_rng(size).choice([-1, 1], (3, size)) * int(levels(8)[-1])
    largest[0] = levels(8)[-1]  # every sum at its largest
    found = hadamard(largest.astype(np.float32))
    exact = np.array([[(-1) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) @ largest.T
    np.testing.assert_array_equal(found, exact.T)
    assert np.abs(found).max() < 2**24


def test_the_largest_level_leaves_room_in_the_mantissa():
    assert max(levels(bits)[-1] for bits in (2, 3, 4, 8)) * MAX_BLOCK < 2**24


@pytest.mark.parametrize("size", [2, 128, 512])
def test_rotating_twice_gives_the_width_times_the_input(size: int):
    rows = np.arange(3 * size, dtype=np.float64).reshape(3, size)
    np.testing.assert_array_equal(hadamard(hadamard(rows)), size * rows)


def test_signs_are_fixed_and_balanced():
    assert signs(12).tolist() == [-1, 1, 1, 1, -1, -1, 1, 1, -1, 1, -1, -1]
    np.testing.assert_array_equal(signs(2560)[:640], signs(640))
    assert abs(signs(2560).sum()) < 150  # three standard deviations


def test_an_outlier_is_spread_over_its_block():
    rows = np.zeros((1, 512), np.float32)
    rows[0, 77] = 8
    np.testing.assert_array_equal(np.abs(hadamard(rows)), np.full((1, 512), 8))
