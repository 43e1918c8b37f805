"""A row of numbers in an `.npy` file, mapped or read. Knows nothing of what the numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_ALL_OF_NUMPY = (EOFError, ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)


def load_row(path: Path, kinds: Sequence[type[np.generic]], mmap_mode: Literal["r"] | None) -> NDArray[Any]:
    """Read or map (n,) numbers of one of `kinds`; pickles are never read.

    Raises:
        OSError, ValueError: the file is missing, damaged, or holds something else.
    """
    try:
        # mapped first, whatever is wanted: a length beyond the file's is refused then, before memory is taken
        mapped = np.load(path, mmap_mode="r")
    except (*_ALL_OF_NUMPY, OverflowError) as exc:
        raise ValueError(f"{path.name} is no array of numpy: {exc}") from exc
    if not isinstance(mapped, np.ndarray) or mapped.dtype.type not in kinds or mapped.ndim != 1:
        expected = " or ".join(kind.__name__ for kind in kinds)
        shown = f"{mapped.dtype} of shape {mapped.shape}" if isinstance(mapped, np.ndarray) else "an archive"
        raise ValueError(f"{path.name} holds {shown}, expected a row of {expected}")
    # asarray: slices of numpy's memmap class are slow to make
    return np.asarray(mapped) if mmap_mode else np.array(mapped)
