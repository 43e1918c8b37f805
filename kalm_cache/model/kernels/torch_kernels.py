"""The kernels in plain torch: where no others can be had, for int8 on CUDA, and as what the others are tested by.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.model.kernels.activations import Activation, Product, Quantized, to_float
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.kernels.rotation import rotate


class TorchKernels:
    """`Kernels` of torch operators alone, on any device and in any dtype."""

    name = "torch"

    def quantize(self, x: Tensor) -> Quantized:
        """As `Kernels.quantize`."""
        x = rotate(x.float())
        scale = x.abs().amax(dim=1) / 127  # (R,)
        # clamped: a row of zeros has scale 0. A row that is not finite keeps a scale that is not, and so stays visible
        values = (x / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).round()
        return Quantized(values.nan_to_num(0.0).clamp(-127, 127).to(torch.int8), scale)

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, quantized: bool) -> Activation:
        """As `Kernels.norm`."""
        return self._activation(F.rms_norm(x.float(), weight.shape, weight, eps), x.dtype, quantized)

    def add_norm(
        self, x: Tensor, branch: Product, weight: Tensor, next_weight: Tensor, eps: float, *, quantized: bool
    ) -> Activation:
        """As `Kernels.add_norm`."""
        # summed in float32 and rounded once, to x's dtype; the reference rounds the branch before it adds it
        x += F.rms_norm(to_float(branch), weight.shape, weight, eps)
        return self.norm(x, next_weight, eps, quantized=quantized)

    def gated_gelu(self, gate_up: Product, dtype: torch.dtype, *, quantized: bool) -> Activation:
        """As `Kernels.gated_gelu`."""
        gate, up = to_float(gate_up).chunk(2, dim=1)  # (R, 2·I) -> (R, I) each
        return self._activation(F.gelu(gate, approximate="tanh") * up, dtype, quantized)

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
        """As `Kernels.split_heads`."""
        columns, start = to_float(product), 0  # (R, columns); where the next part begins
        for part in (queries, keys, values):
            if part is None:
                continue
            _, kv_heads, slots, group, width = part.out.shape  # (N, K, slots, G, E)
            stop = start + kv_heads * group * width
            heads = columns[:, start:stop].unflatten(1, (kv_heads, group, width))  # (R, K·G·E) -> (R, K, G, E)
            start = stop
            if part.weight is not None:
                heads = F.rms_norm(heads, part.weight.shape, part.weight, eps)
                heads = heads if rope is None else rope.rotate(heads)
            # two index tensors apart from each other: their (R,) comes first, (R, K, G, E) on both sides
            part.out[part.slot // slots, :, part.slot % slots] = heads.to(part.out.dtype)

    def locate(self, cached: Sequence[PrefixKV]) -> Sequence[Tensor]:
        """As `Kernels.locate`: nothing."""
        return ()

    def load_kv(self, cached: Sequence[PrefixKV], located: Sequence[Tensor], index: int, out: Tensor) -> None:
        """As `Kernels.load_kv`."""
        for n, entry in enumerate(cached):
            states = entry.states[index]  # (2, K, L + P, E)
            to = out[:, n, :, : states.shape[2]]  # (2, K, L + P, E), a view
            to.copy_(states if entry.scale is None else states * entry.scale[index].unsqueeze(-1))

    def visible(self, spans: Tensor, keys: int, group: int) -> Tensor:
        """As `Kernels.visible`."""
        slot = torch.arange(keys, device=spans.device)  # (S,)
        first, first_end, second, second_end = (bound.unsqueeze(-1) for bound in spans.unbind(-1))  # (N, T, 1)
        seen = ((slot >= first) & (slot < first_end)) | ((slot >= second) & (slot < second_end))  # (N, T, S)
        return seen.repeat_interleave(group, dim=1).unsqueeze(1)  # (N, 1, T·G, S): the same for all K

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """As `Kernels.attend`."""
        # scale 1: the queries' norm holds it already
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=1.0)

    def _activation(self, x: Tensor, dtype: torch.dtype, quantized: bool) -> Activation:
        return self.quantize(x) if quantized else x.to(dtype)
