"""The Triton kernels, where they can be used: Triton comes with CUDA builds of torch, and is imported only here."""

from __future__ import annotations

import functools
import logging
import os

import torch

from kalm_cache.model.kernels.interface import Kernels
from kalm_cache.model.kernels.trial import compare
from kalm_cache.model.precision import synchronise

logger = logging.getLogger(__name__)


@functools.cache
def triton_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels for a GPU, or `None` (and a logged warning) where they are of no use there.

    On a CPU they run in Triton's interpreter, for tests, where its environment variable `TRITON_INTERPRET` is 1; else
    they are of no use there.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        logger.warning("Triton kernels need a GPU, or TRITON_INTERPRET=1, which is for tests; the device is %s", device)
        return None
    try:
        from kalm_cache.model.kernels.triton.kernels import TritonKernels
    except ImportError as exc:
        logger.warning("no Triton kernels (%s): plain torch kernels are used, which are slower", exc)
        return None
    kernels = TritonKernels()
    try:
        compare(kernels, dtype, device)
    except Exception as exc:  # errors of Triton's compiler, its runtime and CUDA have no class in common
        synchronise(device)  # raises again where the trial lost the GPU
        logger.warning("the Triton kernels cannot be used (%s): plain torch kernels are, which are slower", exc)
        return None
    return kernels
