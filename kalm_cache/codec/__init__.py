"""Codecs: pooled states ↔ the payload of a record. `interface` says what one does, `registry` lists them all.

Letters in shapes: P pooled states of a passage, n vectors of one passage or several, D state width, w width of one
block of the rotation, a power of two.
"""

from kalm_cache.codec.interface import Codec, decode
from kalm_cache.codec.registry import CODECS, codec_by_number, get_codec

__all__ = ["CODECS", "Codec", "codec_by_number", "decode", "get_codec"]
