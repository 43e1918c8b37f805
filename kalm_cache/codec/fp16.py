"""Half precision: 2 bytes a value before zstd, relative error at most 2⁻¹¹, below 2⁻¹⁴ absolute error at most 2⁻²⁵."""

from __future__ import annotations

import numpy as np

from kalm_cache.codec.codec import Float32, check_finite, compress, decompress


class Fp16:
    """IEEE half precision, little-endian, row by row."""

    name = "fp16"
    number = 1

    def encode(self, pooled: Float32) -> bytes:
        """See `Codec.encode`; a value beyond ±65,504 cannot be held."""
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused below
            halves = pooled.astype("<f2")
        check_finite(halves, self.name)
        return compress(halves.tobytes())

    def decode(self, payload: bytes | memoryview, rows: int, width: int) -> Float32:
        """See `Codec.decode`."""
        raw = decompress(payload, rows * width * 2)
        return np.frombuffer(raw, "<f2").reshape(rows, width).astype(np.float32)
