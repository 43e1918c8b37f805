"""float32 ↔ bfloat16, which NumPy lacks: the upper half of a float32, rounded to nearest, ties to even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 -> bits of bfloat16, little-endian, of the same shape; too large ones become infinite."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    # half a step minus one, and one more where the last bit that stays is odd: a tie goes to the even neighbour
    nearest: NDArray[np.uint16] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2")
    return nearest


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Bits of bfloat16 -> the same values as float32."""
    # a float32 whose lower half is zeros: exact
    return (bits.astype("<u4") << 16).view("<f4")
