"""One byte a value and one float32 scale a vector: absolute error at most scale / 2 = max|x| / 254."""

from __future__ import annotations

import numpy as np

from kalm_cache.codec.codec import Float32, check_finite, compress, decompress


class Int8:
    """Symmetric linear quantisation. Raw layout: P scales (float32), then P × D levels (int8), little-endian."""

    name = "int8"
    number = 2

    def encode(self, pooled: Float32) -> bytes:
        """See `Codec.encode`."""
        check_finite(pooled, self.name)
        scales = (np.abs(pooled).max(axis=1, keepdims=True) / 127).astype("<f4")  # (P, 1)
        with np.errstate(over="ignore"):  # next to the largest float32, a scale rounded up would decode to inf
            check_finite(127 * scales, self.name)
        levels = np.rint(pooled / np.where(scales > 0, scales, 1)).clip(-127, 127).astype(np.int8)  # (P, D)
        return compress(scales.tobytes() + levels.tobytes())

    def decode(self, payload: bytes | memoryview, rows: int, width: int) -> Float32:
        """See `Codec.decode`."""
        raw = decompress(payload, rows * (4 + width))
        scales = np.frombuffer(raw, "<f4", count=rows).reshape(rows, 1)
        levels = np.frombuffer(raw, np.int8, offset=4 * rows).reshape(rows, width)
        decoded: Float32 = levels * scales
        return decoded
