"""What a codec does: states ↔ bytes. Knows nothing of LMDB or models. `registry` lists the codecs there are.

Letters in shapes: `kalm_cache.codec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError, StoreError

Float32 = NDArray[np.float32]
Payload = bytes | memoryview


class Codec(Protocol):
    """One way to store pooled states. `number` stands in every record and is never given to another layout."""

    @property
    def name(self) -> str:
        """What settings and fingerprints call it."""

    @property
    def number(self) -> int:
        """What records call it, 0 … 255."""

    def payload_bytes(self, rows: int, width: int) -> int | None:
        """Bytes of every payload of that shape; `None` where they differ (zstd)."""

    def encode(self, pooled: Float32) -> bytes:
        """(P, D) finite float32 -> payload. Raises `StoreError` for values that it cannot hold."""

    def decode_many(self, payloads: Sequence[Payload], rows: Sequence[int], width: int, out: Float32) -> None:
        """Payloads of `rows[i]` states each -> `out` (Σ rows, width) float32, one after the other, without padding.

        Raises:
            DamagedRecordError: a payload has another size, or does not decompress, or holds an impossible scale; says
                which one (`payload 3`, counted from 0). `out` is undefined then.
        """


class RawCodec(Codec, Protocol):
    """A codec whose payloads have a fixed size."""

    @property
    def item_bytes(self) -> int:
        """Bytes of one value, 1 where it has fewer."""

    def payload_bytes(self, rows: int, width: int) -> int:
        """Bytes of every payload of that shape."""


def decode(codec: Codec, payload: Payload, rows: int, width: int) -> Float32:
    """One payload -> (rows, width) float32; errors as in `Codec.decode_many`."""
    out = np.empty((rows, width), np.float32)
    codec.decode_many([payload], [rows], width, out)
    return out


def check_sizes(payloads: Sequence[Payload], sizes: Sequence[int]) -> None:
    """Raise `DamagedRecordError` for the first payload of another size than its header says."""
    for i, (payload, size) in enumerate(zip(payloads, sizes, strict=True)):
        if len(payload) != size:
            raise DamagedRecordError(f"payload {i} holds {len(payload)} bytes, its header says {size}")


def check_finite(values: NDArray[np.floating], codec: str) -> None:
    """Raise `StoreError` when a value is NaN or infinite, which no reader could use."""
    if not np.isfinite(values).all():
        raise StoreError(f"codec {codec}: a state is not finite; encode with --dtype bfloat16 or float32")
