"""`Kernels`: the interface that native.py, torch_kernels.py and triton/kernels.py implement.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kalm_cache.model.kernels.activations import Activation, Product, Quantized
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import PrefixKV


class Kernels(Protocol):
    """Everything of a layer that is no matrix product. Arithmetic is float32, whatever is stored."""

    name: str

    def quantize(self, x: Tensor) -> Quantized:
        """Rows (R, D), rotated, to int8 with one scale each: the largest magnitude becomes 127."""

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, quantized: bool) -> Activation:
        """x / rms(x) · weight. x (R, D) -> the same shape in x's dtype, or int8; weight (D,) float32."""

    def add_norm(
        self, x: Tensor, branch: Product, weight: Tensor, next_weight: Tensor, eps: float, *, quantized: bool
    ) -> Activation:
        """x ← x + norm(branch, weight), in place; returns norm(x, next_weight). x, branch (R, D)."""

    def gated_gelu(self, gate_up: Product, dtype: torch.dtype, *, quantized: bool) -> Activation:
        """gelu_tanh(gate) · up. gate_up (R, 2·I), gates first -> (R, I) in `dtype`, or int8."""

    def split_heads(
        self,
        product: Product,
        *,
        queries: Heads | None,
        keys: Heads | None,
        values: Heads | None,
        rope: Rope | None,
        eps: float,
    ) -> None:
        """Cut a product (R, columns) into heads, queries first, then keys, then values, and write each to its slots.

        Heads with a weight are normalised and, with `rope`, rotated.
        """

    def locate(self, cached: Sequence[PrefixKV]) -> Sequence[Tensor]:
        """What `load_kv` has to know on the device of a batch's entries, to be moved there once; on the CPU."""

    def load_kv(self, cached: Sequence[PrefixKV], located: Sequence[Tensor], index: int, out: Tensor) -> None:
        """Write layer `index` of each sequence's cached keys and values to the first slots of `out` (2, N, K, S, E).

        `located`: what `locate` gave for `cached`, on the device.
        """

    def visible(self, spans: Tensor, keys: int, group: int) -> Tensor:
        """What `attend` takes for spans (N, T, 4) int32: key slots [a, b) and [c, d) of S = `keys` are seen."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Softmax attention. query (N, K, T·G, E), already scaled; key, value (N, K, S, E) -> as query.

        What comes out for a query that sees nothing means nothing.
        """
