"""A compiled library, used once in a process of its own: `python -m kalm_cache.model.kernels.trial FILE [SYMBOL …]`.

It ends with an error, or the process with a signal, where the library is of no use. Symbols are those of native.cpp: a
library that must have them is compared with the torch kernels, too.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from kalm_cache.model.kernels.native import SUFFIXES, NativeKernels
from kalm_cache.model.kernels.torch_kernels import TorchKernels

ROWS, WIDTH = 3, 72  # no whole number of vector registers


def compare(native: NativeKernels, dtype: torch.dtype) -> None:
    """Raise `AssertionError` where a norm or an activation is another one than torch's."""
    x = torch.linspace(-3, 3, ROWS * WIDTH).reshape(ROWS, WIDTH).to(dtype)
    torch_kernels, weight = TorchKernels(), torch.linspace(0.5, 1.5, WIDTH)
    for mine, reference in (
        (native.norm(x, weight, 1e-6, quantized=False), torch_kernels.norm(x, weight, 1e-6, quantized=False)),
        (native.gated_gelu(x, dtype, quantized=False), torch_kernels.gated_gelu(x, dtype, quantized=False)),
    ):
        torch.testing.assert_close(mine, reference, rtol=0.02, atol=0.02)


def main() -> None:
    """Load, look up, compare."""
    _, file, *symbols = sys.argv
    library = ctypes.CDLL(file)  # after torch, whose OpenMP it uses
    missing = [name for name in symbols if not hasattr(library, name)]
    if missing:
        sys.exit(f"it lacks {missing[0]}")
    for dtype in SUFFIXES if symbols else ():
        compare(NativeKernels(library), dtype)


if __name__ == "__main__":
    main()
