"""States ↔ bytes. Knows nothing of LMDB or models.

Legend: P pooled states, D state width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError, StoreError

Float32 = NDArray[np.float32]
ZSTD_LEVEL = 3


class Codec(Protocol):
    """One way to store pooled states. `number` stands in every record and is never given to another codec."""

    name: str
    number: int

    def encode(self, pooled: Float32) -> bytes:
        """(P, D) finite float32 -> payload. Raises `StoreError` for values that it cannot hold."""

    def decode(self, payload: bytes | memoryview, rows: int, width: int) -> Float32:
        """Payload -> (rows, width) float32. Raises `DamagedRecordError` when it has another size."""


def compress(raw: bytes) -> bytes:
    """zstd, with the content size in the frame."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(raw)


def decompress(payload: bytes | memoryview, size: int) -> bytes:
    """Inverse of `compress`. Raises `DamagedRecordError` when it does not give exactly `size` bytes."""
    try:
        raw = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise DamagedRecordError(f"the payload does not decompress: {exc}") from exc
    if len(raw) != size:
        raise DamagedRecordError(f"the payload holds {len(raw)} bytes, its header says {size}")
    return raw


def check_finite(values: NDArray[np.floating], codec: str) -> None:
    """Raise `StoreError` when a value is NaN or infinite, which no reader could use."""
    if not np.isfinite(values).all():
        raise StoreError(f"codec {codec}: a state is not finite; encode with --dtype bfloat16 or float32")
