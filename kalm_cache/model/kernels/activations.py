"""What flows between products and kernels: plain tensors, or int8 values with their scales.

Letters in shapes: `kalm_cache.model`; here D is the width of any product's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows in int8: row i, rotated (rotation.py), is `values[i] · scale[i]`. values (R, D) int8, scale (R,) float32."""

    values: Tensor
    scale: Tensor


@dataclass(frozen=True, slots=True)
class Accumulated:
    """An int8 product before scaling: entry (i, j) stands for `values[i, j] · row_scale[i] · column_scale[j]`.

    values (R, O) int32, row_scale (R,) float32, column_scale (O,) float32.
    """

    values: Tensor
    row_scale: Tensor
    column_scale: Tensor


Activation = Tensor | Quantized
Product = Tensor | Accumulated


def select_activation(x: Activation, rows: Tensor | slice) -> Activation:
    """Some rows of an activation; `rows` int64 or a slice."""
    if isinstance(x, Tensor):
        return x[rows]  # a slice gives a view, indices a copy
    return Quantized(x.values[rows], x.scale[rows])  # (R', D), (R',)


def select_product(x: Product, rows: Tensor | slice) -> Product:
    """Some rows of a product; `rows` int64 or a slice."""
    if isinstance(x, Tensor):
        return x[rows]
    return Accumulated(x.values[rows], x.row_scale[rows], x.column_scale)  # (R', O), (R',), (O,) as it was


def to_float(product: Product) -> Tensor:
    """The product's numbers in float32, (R, O)."""
    if isinstance(product, Tensor):
        return product.float()
    # int32 -> float32 rounds sums from 2^24 on, by 2⁻²⁴ of themselves: no more than each of the two products does
    return product.values.to(torch.float32) * product.row_scale.unsqueeze(1) * product.column_scale  # (R, 1), (O,)
