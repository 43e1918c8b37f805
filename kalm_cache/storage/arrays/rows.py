"""A row of numbers in an `.npy` file, mapped or read. Knows nothing of what the numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALL_OF_NUMPY = (EOFError, ValueError, KeyError, TypeError, SyntaxError, TokenError, RecursionError, MemoryError)


COPIED_BYTES = 64 << 10  # what is smaller is read: the system's maps are limited, too


def load_row(path: Path, kinds: Sequence[type[np.generic]], *, mapped: bool) -> NDArray[Any]:
    """Read or map (n,) numbers of one of `kinds`; pickles are never read. No descriptor stays open.

    Raises:
        OSError, ValueError: the file is missing, damaged, or holds something else.
    """
    try:
        # mapped first, whatever is wanted: a length beyond the file's is refused then, before memory is taken
        row = np.load(path, mmap_mode="r")
    except (*_ALL_OF_NUMPY, OverflowError) as exc:
        raise ValueError(f"{path.name} is no array of numpy: {exc}") from exc
    if not isinstance(row, np.memmap) or row.dtype.type not in kinds or row.ndim != 1:
        expected = " or ".join(kind.__name__ for kind in kinds)
        shown = f"{row.dtype} of shape {row.shape}" if isinstance(row, np.ndarray) else "an archive"
        raise ValueError(f"{path.name} holds {shown}, expected a row of {expected}")
    return _mapped(path, row) if mapped and row.nbytes > COPIED_BYTES else np.array(row)


def _mapped(path: Path, row: np.memmap[Any, Any]) -> NDArray[Any]:
    """The row, mapped by torch, which closes the file: numpy's own map keeps it open, eight for each segment."""
    import torch

    try:
        content = torch.from_file(str(path), shared=False, size=row.offset + row.nbytes, dtype=torch.uint8).numpy()
    except RuntimeError as exc:
        raise ValueError(f"{path.name} cannot be mapped: {exc}") from exc
    mapped: NDArray[Any] = np.frombuffer(content, row.dtype, len(row), row.offset)
    mapped.flags.writeable = False
    return mapped
