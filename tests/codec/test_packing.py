"""Codes and bytes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kalm_cache.codec.levels import levels
from kalm_cache.codec.packing import pack, packed_width, unpack_levels


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (8, [0, 255, 7], [0, 255, 7]),
        (4, [1, 2, 15], [0x21, 0x0F]),
        (2, [0, 1, 2, 3, 3], [0b11100100, 0b11]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (3, [7], [7, 0, 0]),
    ],
)
def test_codes_are_packed_lowest_bit_first(bits: int, codes: list[int], expected: list[int]):
    assert pack(np.array([codes], np.uint8), bits).tolist() == [expected]
    assert packed_width(len(codes), bits) == len(expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 8, 640])
def test_unpacking_gives_the_level_of_each_code(bits: int, width: int):
    codes = np.random.default_rng(width).integers(0, 1 << bits, (5, width)).astype(np.uint8)
    np.testing.assert_array_equal(unpack_levels(pack(codes, bits), bits, width), levels(bits)[codes])
