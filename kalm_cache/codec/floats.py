"""float32, bfloat16 and half precision, row by row, little-endian; 4, 2 and 2 bytes a value.

Relative error at most 0, 2⁻⁸ and 2⁻¹¹; half precision: below 2⁻¹⁴ absolute error at most 2⁻²⁵, above 65,504 refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec.bfloat16 import from_bfloat16, to_bfloat16
from kalm_cache.codec.interface import Float32, Payload, check_finite, check_sizes


@dataclass(frozen=True, slots=True)
class Floats:
    """One floating-point format. `dtype`: how its bits are stored; `narrow` and `widen`: from and to float32."""

    name: str
    number: int
    dtype: str
    narrow: Callable[[Float32], NDArray[Any]]
    widen: Callable[[NDArray[Any]], NDArray[np.floating]]

    @property
    def item_bytes(self) -> int:
        """See `RawCodec`."""
        return np.dtype(self.dtype).itemsize

    def payload_bytes(self, rows: int, width: int) -> int:
        """See `RawCodec.payload_bytes`."""
        return rows * width * self.item_bytes

    def encode(self, pooled: Float32) -> bytes:
        """See `Codec.encode`; also refuses values beyond the format's largest."""
        narrow = self.narrow(pooled)
        check_finite(self.widen(narrow), self.name)  # after narrowing, which turns what is too large into infinities
        return narrow.tobytes()

    def decode_many(self, payloads: Sequence[Payload], rows: Sequence[int], width: int, out: Float32) -> None:
        """See `Codec.decode_many`."""
        check_sizes(payloads, [self.payload_bytes(count, width) for count in rows])
        # joined first: one conversion of all rows is faster than one a passage. (n · D,) -> (n, D)
        out[:] = self.widen(np.frombuffer(b"".join(payloads), self.dtype)).reshape(-1, width)


def _as_stored(values: NDArray[Any]) -> NDArray[Any]:
    return values


def _to_little_endian(values: Float32) -> NDArray[np.float32]:
    return values.astype("<f4")


def _to_half(values: Float32) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused
        return values.astype("<f2")


FP32 = Floats("fp32", 3, "<f4", _to_little_endian, _as_stored)
BF16 = Floats("bf16", 4, "<u2", to_bfloat16, from_bfloat16)
FP16 = Floats("fp16", 5, "<f2", _to_half, _as_stored)
