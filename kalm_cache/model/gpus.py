"""One process a GPU: which GPU each of a service's processes computes on. Loads nothing, and never asks CUDA itself.

A process that has asked CUDA anything cannot fork for it any more: its children would fail at their first call. So it
is asked in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from kalm_cache.errors import UsageError
from kalm_cache.model.precision import named_device

COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


def worker_gpus(device: str, workers: int) -> list[str]:
    """The device of each process: cuda:0, cuda:1, …; none where they compute on the CPU.

    Args:
        device: of the settings: auto, cpu, cuda or cuda:N.
        workers: processes, 2 or more.

    Raises:
        UsageError: there are fewer GPUs than processes, or the device is one GPU.
    """
    asked = None if device == "auto" else named_device(device)
    if torch.version.cuda is None or (asked is not None and asked.type != "cuda"):
        return []
    if asked is not None and asked.index is not None:
        raise UsageError(f"{workers} workers on {device}: a GPU takes one; use --device cuda, or --workers 1")
    count = gpus_seen_apart()
    if count == 0 and asked is None:
        return []
    if count == 0:
        raise UsageError(f"device {device!r} was asked for, but torch sees no CUDA here; use auto or cpu")
    if count < workers:
        raise UsageError(f"{workers} workers, and torch sees {count} GPUs here: each takes one; use --workers {count}")
    return [f"cuda:{number}" for number in range(workers)]


def gpus_seen_apart() -> int:
    """How many GPUs torch sees, as a process of its own finds out."""
    asked = subprocess.run([sys.executable, "-c", COUNT], stdout=subprocess.PIPE, text=True, check=True)
    return int(asked.stdout)
