"""One layer of T5Gemma2, encoder's or decoder's, over packed rows: products here, all between them in `kernels`.

Formulas: transformers 5.x, `models/t5gemma2/modeling_t5gemma2.py`.
Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.activations import Activation, Product, Quantized, select_activation
from kalm_cache.model.layers.linear import Linear, ScratchBuffer

MLP_BYTES = 16 << 20  # of one block's gates (rows, 2·I): bounds what a long batch needs
GPU_SHARE = 64  # on a GPU a 64th of its memory: every block is three launches


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms' factors 1 + w, float32. `query` holds the attention's scale, too."""

    pre_attention: Tensor  # (D,)
    post_attention: Tensor  # (D,)
    pre_mlp: Tensor  # (D,)
    post_mlp: Tensor  # (D,)
    query: Tensor  # (E,): one for all heads
    key: Tensor  # (E,)
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """Products, fused where they share their input, and norms.

    qkv: D -> (H + 2·K)·E, queries first, of which `queries` are H·E; o: H·E -> D; gate_up: D -> 2·I, gates first;
    down: I -> D.
    """

    kind: str
    queries: int
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    norms: Norms

    @property
    def q(self) -> Linear:
        """Queries alone: D -> H·E."""
        return self.qkv.outputs(0, self.queries)

    @property
    def kv(self) -> Linear:
        """Keys and values alone: D -> 2·K·E."""
        return self.qkv.outputs(self.queries)

    def finish(
        self,
        x: Tensor,
        mixed: Tensor,
        next_norm: Tensor,
        kernels: Kernels,
        scratch: ScratchBuffer,
        *,
        quantized: bool,
        quantize_next: bool,
    ) -> Activation:
        """Attention's output and the MLP, each onto the residual stream.

        Args:
            x: (R, D), changed in place.
            mixed: (R, H·E), the heads' mixed values.
            next_norm: (D,) float32, of the norm that comes after this layer.
            kernels: what computes between products.
            scratch: of this run, for the gates.
            quantized: whether products take int8.
            quantize_next: whether the norm after this layer feeds another product.

        Returns:
            x after the next norm, (R, D).
        """
        # norms stand on both sides of a branch: x ← x + post(branch(pre(x)))
        norms = self.norms
        attended = self.o(kernels.quantize(mixed) if quantized else mixed)  # (R, H·E) -> (R, D)
        # one kernel adds a branch and makes the next product's input: the stream is read and written once
        h = kernels.add_norm(x, attended, norms.post_attention, norms.pre_mlp, norms.eps, quantized=quantized)
        branch = self._mlp(h, x.dtype, kernels, scratch)  # (R, D)
        return kernels.add_norm(x, branch, norms.post_mlp, next_norm, norms.eps, quantized=quantize_next)

    def tensors(self) -> list[Tensor]:
        """What it keeps in memory."""
        products = [tensor for linear in (self.qkv, self.o, self.gate_up, self.down) for tensor in linear.tensors()]
        norms = [value for field in fields(Norms) if isinstance(value := getattr(self.norms, field.name), Tensor)]
        return products + norms

    def _mlp(self, x: Activation, dtype: torch.dtype, kernels: Kernels, scratch: ScratchBuffer) -> Product:
        """down(gelu_tanh(gate(x)) · up(x)), (R, D) -> (R, D), a block of rows at a time."""
        quantized = isinstance(x, Quantized)
        rows = len(x.values if isinstance(x, Quantized) else x)
        out = self.down.empty(rows, x)  # (R, D)
        item_bytes = 4 if quantized else dtype.itemsize  # int8 products come in int32
        most = mlp_bytes(self.gate_up.weight.device)
        for block in _blocks(rows, max(1, most // (item_bytes * len(self.gate_up.weight)))):
            gate_up = scratch.product(self.gate_up, select_activation(x, block))  # (block, D) -> (block, 2·I)
            # (block, 2·I) -> (block, I) -> (block, D)
            self.down.fill(out, block.start, kernels.gated_gelu(gate_up, dtype, quantized=quantized))
        return out


def mlp_bytes(device: torch.device) -> int:
    """Bytes of one block's gates on a device."""
    if device.type != "cuda":
        return MLP_BYTES
    return max(MLP_BYTES, torch.cuda.get_device_properties(device).total_memory // GPU_SHARE)


def _blocks(rows: int, step: int) -> list[slice]:
    """`rows` in blocks of `step`. A rest of at most half a block joins the last one: every block reads all weights."""
    starts = range(0, max(rows - step // 2, 1), step)
    return [slice(start, rows if start == starts[-1] else start + step) for start in starts]
