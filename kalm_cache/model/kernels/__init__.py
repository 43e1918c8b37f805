"""Everything of a layer that is no matrix product: native where this machine can compile it, torch otherwise."""

from __future__ import annotations

import os

import torch

from kalm_cache.errors import UsageError
from kalm_cache.model.kernels.interface import Kernels
from kalm_cache.model.kernels.native import SUFFIXES, NativeKernels, native_library
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.openmp import survive_forks

__all__ = ["Kernels", "choose_kernels"]

CHOICE = "KALM_CACHE_KERNELS"


def choose_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest kernels that this machine has for a device and the dtype of the residual stream.

    The environment variable `KALM_CACHE_KERNELS` may say `torch` (never compile) or `native` (fail rather than do
    without); unset or `auto` takes the native ones where they can be compiled.

    Raises:
        UsageError: `native` was asked for and cannot be had, or the variable holds another word.
    """
    survive_forks(torch._C.__file__)
    choice = os.environ.get(CHOICE) or "auto"
    if choice not in ("auto", "native", "torch"):
        raise UsageError(f"{CHOICE} is {choice!r}; it must be auto, native or torch")
    if choice == "torch" or device.type != "cpu" or dtype not in SUFFIXES:
        return TorchKernels()
    library = native_library()
    if library is None:
        if choice == "native":
            raise UsageError(f"{CHOICE} is native, but the kernels could not be compiled: is a C++ compiler there?")
        return TorchKernels()
    return NativeKernels(library)
