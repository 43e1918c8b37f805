"""The table of codecs, and how a name or a record's number becomes one of them.

To add a codec: write a class that follows `interface.RawCodec` in a file of its own, add one line to the table here,
with a number that no codec ever had, and add a golden file in tests/golden.

    fp32 · bf16 · fp16 · int8 · int4 · int3 · int2     and each with `+zstd` or `+zstdLEVEL`, as in `bf16+zstd3`

The name holds the zstd level too: setting, flag and fingerprint are one string.
"""

from __future__ import annotations

import re
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from kalm_cache.codec.floats import BF16, FP16, FP32
from kalm_cache.codec.interface import Codec, RawCodec
from kalm_cache.codec.rotated import Rotated
from kalm_cache.codec.zstd import NUMBER_FLAG, ZSTD_LEVEL, Zstd
from kalm_cache.errors import UsageError

# numbers 1 and 2 were fp16 and int8 without planes and rotation, under zstd: never given again
_ALL: tuple[RawCodec, ...] = (
    FP32,
    BF16,
    FP16,
    Rotated("int8", 6, 8),
    Rotated("int4", 7, 4),
    Rotated("int3", 8, 3),
    Rotated("int2", 9, 2),
)
CODECS = {codec.name: codec for codec in _ALL}
ZSTD_LEVELS = range(1, 23)


def get_codec(name: str, sensitivity: NDArray[np.float64] | None = None) -> Codec:
    """The codec of that name.

    Args:
        name: as in the module.
        sensitivity: (D, D), of the checkpoint whose states it will encode; the codecs below 8 bits round by it (see
            `feedback`), the others have no need to. Decoding never needs it.

    Raises:
        UsageError: there is none; it lists the known ones.
    """
    base, plus, rest = name.partition("+")
    level = re.fullmatch(r"zstd(\d*)", rest)
    if base not in CODECS or (plus and not level):
        raise UsageError(f"codec {name!r} is not known: use {', '.join(CODECS)}, or one of them with +zstd{ZSTD_LEVEL}")
    raw = CODECS[base]
    if sensitivity is not None and _is_coarse(raw):
        raw = raw.with_sensitivity(sensitivity)
    if not level:
        return raw
    number = int(level[1] or ZSTD_LEVEL)
    if number not in ZSTD_LEVELS:
        raise UsageError(f"codec {name!r}: zstd has levels 1 to 22")
    return Zstd(raw, number)


def rounds_by_sensitivity(name: str) -> bool:
    """Whether the payloads of a codec depend on the sensitivity it is given. Raises `UsageError` as `get_codec`."""
    return _is_coarse(CODECS[get_codec(name).name.partition("+")[0]])


def _is_coarse(codec: RawCodec) -> TypeGuard[Rotated]:
    return isinstance(codec, Rotated) and codec.bits < 8


def codec_by_number(number: int) -> Codec | None:
    """The codec whose number stands in a record's header, if this version knows it; reads any zstd level."""
    raw = next((codec for codec in CODECS.values() if codec.number == number & ~NUMBER_FLAG), None)
    return Zstd(raw, ZSTD_LEVEL) if raw and number & NUMBER_FLAG else raw
