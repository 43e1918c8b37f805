"""zstd frames: planes, and what is refused before anything is allocated."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from kalm_cache.codec import get_codec
from kalm_cache.codec.zstd import compress, decompress
from kalm_cache.errors import DamagedRecordError


def test_bytes_of_equal_place_lie_together():
    raw = zstandard.ZstdDecompressor().decompress(get_codec("bf16+zstd3").encode(np.array([[1, -2, 3]], np.float32)))
    assert raw == bytes.fromhex("80 00 40  3f c0 40")  # 3f80, c000, 4040


def test_compressed_payloads_say_their_size():
    assert zstandard.frame_content_size(compress(b"a" * 1000)) == 1000


@pytest.mark.parametrize("spoil", [lambda p: b"", lambda p: p[:-1], lambda p: p + b"\0", lambda p: b"\0" + p])
@pytest.mark.parametrize("name", ["fp16+zstd3", "int4+zstd3"])
def test_a_frame_that_does_not_decompress_is_refused(name: str, spoil):
    codec = get_codec(name)
    good = codec.encode(np.ones((2, 4), np.float32))
    with pytest.raises(DamagedRecordError, match="payload 1: it does not decompress"):
        codec.decode_many([good, spoil(good)], [2, 2], 4, np.empty((4, 4), np.float32))


def test_a_frame_that_promises_too_much_is_refused_unread():
    with pytest.raises(DamagedRecordError, match="it holds 1000000 bytes, its header says 8"):
        decompress(compress(bytes(1_000_000)), 8)
