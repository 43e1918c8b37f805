"""Everything of a layer that is no matrix product: native on CPUs, Triton on GPUs, torch where these cannot be had."""

from __future__ import annotations

import os

import torch

from kalm_cache.errors import UsageError
from kalm_cache.model.kernels.interface import Kernels
from kalm_cache.model.kernels.native import SUFFIXES, NativeKernels, native_library
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.kernels.triton.loading import triton_kernels
from kalm_cache.process.openmp import survive_forks

__all__ = ["Kernels", "choose_kernels"]

CHOICE = "KALM_CACHE_KERNELS"
CHOICES = ("auto", "native", "torch", "triton")


def choose_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """The fastest kernels that this machine has for a device and the dtype of the residual stream.

    The environment variable `KALM_CACHE_KERNELS` may say `torch` (never compile), `native` or `triton` (fail rather
    than do without); unset or `auto` takes the native ones on a CPU and Triton's on CUDA, where they can be had.

    Raises:
        UsageError: what was asked for cannot be had, or the variable holds another word.
    """
    survive_forks(torch._C.__file__)
    choice = os.environ.get(CHOICE) or "auto"
    if choice not in CHOICES:
        raise UsageError(f"{CHOICE} is {choice!r}; it must be auto, native, torch or triton")
    if choice == "triton" or (choice == "auto" and device.type == "cuda"):
        kernels = triton_kernels(device, dtype)
        if kernels is None and choice == "triton":
            raise UsageError(f"{CHOICE} is triton, but its kernels cannot be used on {device}: the log says why")
        return kernels or TorchKernels()
    if choice == "torch" or device.type != "cpu" or dtype not in SUFFIXES:
        return TorchKernels()
    library = native_library()
    if library is None:
        if choice == "native":
            raise UsageError(f"{CHOICE} is native, but the kernels could not be compiled: is a C++ compiler there?")
        return TorchKernels()
    return NativeKernels(library)
