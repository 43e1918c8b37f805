"""Codecs: pooled states ↔ the payload of a record. `interface` says what one does, `registry` lists them all."""

from kalm_cache.codec.interface import Codec
from kalm_cache.codec.registry import CODECS, codec_by_number, get_codec

__all__ = ["CODECS", "Codec", "codec_by_number", "get_codec"]
