"""Codes of 2, 3, 4 or 8 bits ↔ bytes, and bytes → levels through tables. Knows nothing of scales or rotations.

The codes of a vector form one little-endian stream of bits: code i takes bits `i · bits` on, lowest bit first. A vector
is padded with zero codes to whole groups, of 1 byte (8, 4 and 2 bits: 1, 2 and 4 codes) or 3 bytes (3 bits: 8 codes).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec.levels import levels

_GROUP = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}  # bits -> codes and bytes of a group
_LOOKUP_CODES = {2: 4, 3: 4, 4: 2, 8: 1}  # codes looked up at once


def packed_width(width: int, bits: int) -> int:
    """Bytes of the codes of one vector of `width` values."""
    codes, size = _GROUP[bits]
    return -(-width // codes) * size


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """(n, D) codes below 2^bits -> (n, packed_width) bytes."""
    per_group, size = _GROUP[bits]
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_group)))  # (n, codes of whole groups)
    if per_group == 1:
        return padded
    words = np.zeros((len(codes), padded.shape[1] // per_group), "<u4")  # (n, groups): a group is 24 bits at most
    for i in range(per_group):
        words |= padded[:, i::per_group].astype("<u4") << np.uint32(bits * i)
    return words.view(np.uint8).reshape(*words.shape, 4)[..., :size].reshape(len(codes), -1)  # -> (n, groups · size)


def unpack_levels(packed: NDArray[np.uint8], bits: int, width: int) -> NDArray[np.float32]:
    """(n, packed_width) bytes -> (n, D) levels, integers in float32."""
    index = _pairs_of_three_bytes(packed) if bits == 3 else packed
    table = _table(bits)
    looked_up = np.empty(index.shape, table.dtype)  # (n, lookups), each element a few float32 side by side
    np.take(table, index, out=looked_up, mode="clip")  # "raise" would buffer the output; no index is out of range
    return looked_up.view(np.float32)[:, :width]  # (n, lookups · codes each) -> (n, D), without the padding


def _pairs_of_three_bytes(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Three bytes -> two numbers of 12 bits, each the codes of four values."""
    groups = packed.reshape(len(packed), -1, 3).astype(np.uint16)  # (n, groups, 3)
    halves = np.empty((*groups.shape[:2], 2), np.uint16)
    halves[..., 0] = groups[..., 0] | (groups[..., 1] & 15) << 8
    halves[..., 1] = groups[..., 1] >> 4 | groups[..., 2] << 4
    return halves.reshape(len(packed), -1)  # (n, groups, 2) -> (n, 2 · groups)


@functools.cache
def _table(bits: int) -> NDArray[np.void]:
    """For every pattern of `_LOOKUP_CODES` codes, their levels side by side as one element, to copy at once."""
    count = _LOOKUP_CODES[bits]
    patterns = np.arange(1 << (bits * count))
    codes = patterns[:, None] >> (bits * np.arange(count)) & ((1 << bits) - 1)  # (patterns, count)
    element = {1: np.float32, 2: np.uint64, 4: np.complex128}[count]  # any type of count · 4 bytes: it is only copied
    return np.ascontiguousarray(levels(bits)[codes]).view(element).ravel()  # (patterns, count) -> (patterns,)
