"""Which codec stored states can exactly be recoded to. Knows nothing of chunk sizes.

Exactly means: as a new encoding would give them, up to the rounding of the wanted codec. States of few bits carry an
error already, which recoding would hide in a codec that promises less, and pooling would not average out. States kept
as floats can become any codec that is no finer than theirs.
"""

from __future__ import annotations

from typing import Literal

from kalm_cache.codec import get_codec

FINENESS = ("fp32", "fp16", "bf16", "int8", "int4", "int3", "int2")  # from fine to coarse
FLOATS = FINENESS[:3]


def recoding_obstacle(stored: str, wanted: str) -> Literal["quantised", "too coarse"] | None:
    """Why states stored in the codec `stored` cannot exactly become `wanted`; `None` where they can.

    Raises:
        UsageError: there is no codec of that name.
    """
    source, target = base_codec(stored), base_codec(wanted)
    if source not in FLOATS:
        return "quantised"
    return "too coarse" if FINENESS.index(target) < FINENESS.index(source) else None


def base_codec(codec: str) -> str:
    """`fp16+zstd3` -> `fp16`. Raises `UsageError` where there is no codec of that name."""
    return get_codec(codec).name.partition("+")[0]
