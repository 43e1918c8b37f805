"""States for codec tests, and a slow decoder written from the documentation."""

from __future__ import annotations

import hashlib
import struct

import numpy as np


def counted_states(rows: int, width: int) -> np.ndarray:
    """Multiples of 1/64 below 16 with a common mean and an outlier in column 3: the same on every machine."""
    i, j = np.indices((rows, width))
    states = (((i * 7919 + j * 104_729 + i * j * 31) % 401) - 200) / 64 + (j % 5 - 2)
    states[:, 3 % width] += 10
    return states.astype(np.float32)


def random_states(rows: int, width: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(rows).normal(size=(rows, width)) * scale).astype(np.float32)


def slow_vector(stored: bytes, bits: int, width: int, positive_levels: list[int]) -> tuple[list[float], int]:
    """One stored vector, one coordinate at a time, as `rotated` documents it; and its bytes."""
    sizes = [1 << i for i in reversed(range(width.bit_length())) if width >> i & 1]
    scales = [struct.unpack("<f", b"\0\0" + stored[2 * i : 2 * i + 2])[0] for i in range(len(sizes))]
    group_codes, group_bytes = {2: (4, 1), 3: (8, 3), 4: (2, 1), 8: (1, 1)}[bits]
    length = -(-width // group_codes) * group_bytes
    stream = int.from_bytes(stored[2 * len(sizes) : 2 * len(sizes) + length], "little")
    levels = [-level for level in reversed(positive_levels)] + positive_levels
    found = [levels[stream >> (bits * i) & ((1 << bits) - 1)] for i in range(width)]
    sign_stream = int.from_bytes(hashlib.shake_256(b"kalm-cache rotation 1").digest(-(-width // 8)), "little")
    decoded, start = [], 0
    for size, scale in zip(sizes, scales, strict=True):
        for row in range(size):
            total = sum((-1) ** (row & column).bit_count() * found[start + column] for column in range(size))
            sign = -1 if sign_stream >> (start + row) & 1 else 1
            decoded.append(float(np.float32(total) * np.float32(scale)) * sign)
        start += size
    return decoded, 2 * len(sizes) + length
