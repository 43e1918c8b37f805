"""Matrix products with fixed weights, in the run's dtype or in int8.

Letters in shapes: `kalm_cache.model`; here D is the width of any product's input.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.model.kernels.activations import Accumulated, Activation, Product, Quantized, select_product
from kalm_cache.model.kernels.rotation import rotate
from kalm_cache.model.layers.int8 import multiply_int8
from kalm_cache.model.precision import widen


@dataclass(frozen=True, slots=True)
class Linear:
    """x · weightᵀ. `weight` (O, D) in the run's dtype, or int8 with one float32 `scale` (O,) for each output."""

    weight: Tensor
    scale: Tensor | None = None

    def __call__(self, x: Activation) -> Product:
        """x (R, D) -> (R, O); int8 weights take and give int8's forms, the others plain tensors."""
        if isinstance(x, Quantized):
            assert self.scale is not None
            # unscaled: the kernel that reads the product scales it on the way, without a pass of its own
            return Accumulated(multiply_int8(x.values, self.weight), x.scale, self.scale)
        return multiply(x, self.weight)

    def empty(self, rows: int, template: Activation) -> Product:
        """Memory for the product of `rows` rows of the kind of `template`, (rows, O), for `fill`."""
        if isinstance(template, Quantized):
            assert self.scale is not None
            values = template.values.new_empty(rows, len(self.weight), dtype=torch.int32)  # (rows, O)
            return Accumulated(values, template.scale.new_empty(rows), self.scale)
        return template.new_empty(rows, len(self.weight))

    def fill(self, out: Product, start: int, x: Activation) -> None:
        """Write the product of some rows `x` to `out`, from row `start` on."""
        if isinstance(x, Quantized):
            assert isinstance(out, Accumulated)
            rows = slice(start, start + len(x.values))
            multiply_int8(x.values, self.weight, out.values[rows])  # (rows, D) · (D, O)
            out.row_scale[rows] = x.scale  # (rows,)
        else:
            assert isinstance(out, Tensor)
            multiply(x, self.weight, out[start : start + len(x)])

    def outputs(self, start: int, stop: int | None = None) -> Linear:
        """The same product for outputs `start … stop` alone; shares memory."""
        # (O', D), (O',): outputs are rows of the weight, so that a slice is contiguous
        return Linear(self.weight[start:stop], None if self.scale is None else self.scale[start:stop])

    def tensors(self) -> list[Tensor]:
        """What it keeps in memory."""
        return [self.weight] if self.scale is None else [self.weight, self.scale]


@dataclass(slots=True)
class ScratchBuffer:
    """Memory for one product at a time, reused through a run. A product is valid until the next one.

    Large blocks that are freed go back to the system: the next layer's would be mapped anew, page by page.
    """

    _largest: Product | None = field(default=None, init=False)

    def product(self, linear: Linear, x: Activation) -> Product:
        """`linear(x)`, in this memory."""
        rows = len(x.values if isinstance(x, Quantized) else x)
        # gates of all layers have as many columns: a block fits where as many rows did
        if self._largest is None or _rows(self._largest) < rows:
            self._largest = linear.empty(rows, x)
        out = select_product(self._largest, slice(rows))  # (rows, O), a view
        if isinstance(out, Accumulated) and linear.scale is not None:
            out = Accumulated(out.values, out.row_scale, linear.scale)  # the memory may have been another linear's
        linear.fill(out, 0, x)
        return out


def multiply(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x · weightᵀ, in `out` where it is given: x (R, D), weight (O, D) -> (R, O), all of the run's dtype."""
    if (wide := widen(x)) is x:
        return F.linear(x, weight) if out is None else torch.mm(x, weight.t(), out=out)  # `F.linear` has no `out`
    product = F.linear(wide, weight.to(wide.dtype)).to(x.dtype)  # the weight is widened for this product alone
    return product if out is None else out.copy_(product)


def _rows(product: Product) -> int:
    return len(product.values if isinstance(product, Accumulated) else product)


def quantize_weight(weight: Tensor) -> Linear:
    """Symmetric int8 with one scale an output: weight (O, D), rotated, ≈ values · scale, |values| ≤ 127."""
    weight = rotate(weight.float())  # as activations are, so that the products stay the same
    scale = weight.abs().amax(dim=1) / 127  # (O,)
    # clamped: an output of zeros has scale 0, and 0 / 0 is no number
    values = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round().to(torch.int8)
    return Linear(values, scale)
