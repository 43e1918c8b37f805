"""How far errors of pooled states move a checkpoint's margins, in each direction: a file beside its weights.

`python -m benchmarks.sensitivity` measures it. An index knows by its digest what its payloads were rounded by; nothing
that reads an index needs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kalm_cache.codec.registry import rounds_by_sensitivity
from kalm_cache.errors import CheckpointError

TENSOR = "sensitivity"


def load_sensitivity(path: Path) -> NDArray[np.float64] | None:
    """(D, D) from a file; `None` where there is none, as none was measured.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        sensitivity = load_file(path)[TENSOR]
    except (SafetensorError, OSError, KeyError) as exc:
        raise CheckpointError(f"{path}: not a readable sensitivity: {exc}") from exc
    if sensitivity.ndim != 2 or sensitivity.shape[0] != sensitivity.shape[1] or not np.isfinite(sensitivity).all():
        raise CheckpointError(f"{path}: not a square of finite numbers")
    return sensitivity.astype(np.float64)  # `feedback` inverts it


def sensitivity_digest(path: Path, codec: str) -> str:
    """SHA-256 (hex) of the file that payloads of a codec are rounded by; empty where they are rounded by none.

    Raises:
        UsageError: there is no such codec.
    """
    if not rounds_by_sensitivity(codec) or not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
