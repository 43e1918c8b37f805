"""Codecs: how pooled states become the payload of a record. A codec is one class, and one line in `CODECS`."""

from __future__ import annotations

from kalm_cache.codec.codec import Codec
from kalm_cache.codec.fp16 import Fp16
from kalm_cache.codec.int8 import Int8
from kalm_cache.errors import UsageError

__all__ = ["CODECS", "Codec", "codec_by_number", "get_codec"]

CODECS: dict[str, Codec] = {codec.name: codec for codec in (Fp16(), Int8())}


def get_codec(name: str) -> Codec:
    """The codec of that name. Raises `UsageError` that lists the known ones."""
    if name not in CODECS:
        raise UsageError(f"codec {name!r} is not known: use {', '.join(CODECS)}")
    return CODECS[name]


def codec_by_number(number: int) -> Codec | None:
    """The codec whose number stands in a record's header, if this version knows it."""
    return next((codec for codec in CODECS.values() if codec.number == number), None)
