"""How far errors of pooled states move a checkpoint's margins, in each direction: a file beside its weights.

`python -m benchmarks.sensitivity` measures it. It is part of the checkpoint's digest, so that an index knows what its
payloads were rounded by; nothing that reads an index needs it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

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
