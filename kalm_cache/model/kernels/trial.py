"""A compiled library, used once in a process of its own: `python -m kalm_cache.model.kernels.trial FILE [SYMBOL …]`.

It ends with an error, or the process with a signal, where the library is of no use. Symbols are those of native.cpp: a
library that must have them is compared with the torch kernels, too.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from kalm_cache.model.kernels.activations import Activation
from kalm_cache.model.kernels.interface import Kernels
from kalm_cache.model.kernels.native import SUFFIXES, NativeKernels
from kalm_cache.model.kernels.torch_kernels import TorchKernels

ROWS, WIDTH = 3, 72  # no whole number of vector registers


def compare(kernels: Kernels, dtype: torch.dtype, device: torch.device | None = None) -> None:
    """Raise `AssertionError` where a norm, an activation or attention is another one than torch's. `None`: a CPU."""
    x = torch.linspace(-3, 3, ROWS * WIDTH, device=device).reshape(ROWS, WIDTH).to(dtype)
    weight = torch.linspace(0.5, 1.5, WIDTH, device=device)
    heads = (x / 9).reshape(1, 1, ROWS, WIDTH)  # (N, K, T·G, E), and keys and values as many
    spans = torch.tensor([[[0, 1, 2, 3]] * ROWS], dtype=torch.int32, device=device)

    def results(each: Kernels) -> list[Activation]:
        normed, gated = each.norm(x, weight, 1e-6, quantized=False), each.gated_gelu(x, dtype, quantized=False)
        return [normed, gated, each.attend(heads, heads, heads, each.visible(spans, ROWS, 1))]

    for mine, reference in zip(results(kernels), results(TorchKernels()), strict=True):
        torch.testing.assert_close(mine, reference, rtol=0.02, atol=0.02)


def compare_products(native: NativeKernels) -> None:
    """Raise `AssertionError` where an int8 product is another one than of whole numbers."""
    x = (torch.arange(ROWS * WIDTH) % 255 - 127).reshape(ROWS, WIDTH)
    out = torch.empty(ROWS, ROWS, dtype=torch.int32)
    native.multiply_int8(x.to(torch.int8), x.to(torch.int8), out)
    torch.testing.assert_close(out.long(), x @ x.t(), rtol=0, atol=0)


def main() -> None:
    """Load, look up, compare."""
    _, file, *symbols = sys.argv
    library = ctypes.CDLL(file)  # after torch, whose OpenMP it uses
    missing = [name for name in symbols if not hasattr(library, name)]
    if missing:
        sys.exit(f"it lacks {missing[0]}")
    for dtype in SUFFIXES if symbols else ():
        compare(NativeKernels(library), dtype)
    if symbols:
        compare_products(NativeKernels(library))


if __name__ == "__main__":
    main()
