"""`TritonKernels`: which kernel runs on how many programs, and in what blocks.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kalm_cache.model.kernels.activations import Activation, Product
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.kernels.triton import attention, heads, prefix, rows

STORED = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.int8: tl.int8}
GELU_COLUMNS = 1024
# So many rows and 32 keys of width 256 fill the registers of 8 warps of an H100 without a spill. 64 keys spill, as do
# more rows in float32, which no tensor core multiplies exactly
BLOCK_ROWS = {torch.float32: 32, torch.bfloat16: 128, torch.float16: 128}
BLOCK_KEYS, ATTENTION_WARPS = 32, 8
KV_SLOTS = 32


class TritonKernels(TorchKernels):
    """`Kernels` for CUDA tensors in float32, bfloat16 and float16; what is int8 is computed as torch's."""

    name = "triton"

    def norm(self, x: Tensor, weight: Tensor, eps: float, *, quantized: bool) -> Activation:
        """As `Kernels.norm`."""
        if quantized:
            return super().norm(x, weight, eps, quantized=True)
        out, width = torch.empty_like(x), x.shape[1]
        block = triton.next_power_of_2(width)
        _launch(rows.norm, len(x), x, weight, out, eps, width, BLOCK=block, num_warps=_warps(block))
        return out

    def add_norm(
        self, x: Tensor, branch: Product, weight: Tensor, next_weight: Tensor, eps: float, *, quantized: bool
    ) -> Activation:
        """As `Kernels.add_norm`."""
        if quantized or not isinstance(branch, Tensor):
            return super().add_norm(x, branch, weight, next_weight, eps, quantized=quantized)
        out, width = torch.empty_like(x), x.shape[1]
        block = triton.next_power_of_2(width)
        weights = weight, next_weight
        _launch(rows.add_norm, len(x), x, branch, *weights, out, eps, width, BLOCK=block, num_warps=_warps(block))
        return out

    def gated_gelu(self, gate_up: Product, dtype: torch.dtype, *, quantized: bool) -> Activation:
        """As `Kernels.gated_gelu`."""
        if quantized or not isinstance(gate_up, Tensor):
            return super().gated_gelu(gate_up, dtype, quantized=quantized)
        width = gate_up.shape[1] // 2  # I
        out = gate_up.new_empty(len(gate_up), width, dtype=dtype)
        block = min(GELU_COLUMNS, triton.next_power_of_2(width))
        programs = len(out) * triton.cdiv(width, block)
        _launch(rows.gated_gelu, programs, gate_up, out, width, BLOCK=block, num_warps=_warps(block))
        return out

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
        if not isinstance(product, Tensor):
            super().split_heads(product, queries=queries, keys=keys, values=values, rope=rope, eps=eps)
            return
        # a kernel takes the same arguments whatever there is: what is lacking has no heads, and is never read
        some = queries or keys or values
        assert some is not None
        assert all(part is None or part.weight is not None for part in (queries, keys))
        assert values is None or values.weight is None
        half = some.out.shape[-1] // 2  # E / 2
        cos, sin, position = (product, product, some.slot) if rope is None else (rope.cos, rope.sin, rope.position)
        query, key, value = queries or some, keys or some, values or some
        _launch(
            heads.split_heads,
            len(product),
            product,
            product.shape[1],
            query.out, query.slot, _weight(query), query.out.shape[2],
            key.out, key.slot, _weight(key), key.out.shape[2],
            value.out, value.slot, value.out.shape[2],
            cos, sin, position, eps,
            QUERY_HEADS=_kv_heads(queries),
            KEY_HEADS=_kv_heads(keys),
            VALUE_HEADS=_kv_heads(values),
            GROUP=query.out.shape[3],
            HALF=half,
            ROTATED=rope is not None,
            BLOCK=triton.next_power_of_2(half),
            num_warps=1,
        )  # fmt: skip

    def locate(self, cached: Sequence[PrefixKV]) -> Sequence[Tensor]:
        """As `Kernels.locate`: the addresses of states and of scales, and L + P, of each entry; (N,) int64 each."""
        scales = [0 if entry.scale is None else entry.scale.data_ptr() for entry in cached]
        addresses, lengths = [entry.states.data_ptr() for entry in cached], [entry.states.shape[3] for entry in cached]
        return [torch.tensor(numbers) for numbers in (addresses, scales, lengths)]

    def load_kv(self, cached: Sequence[PrefixKV], located: Sequence[Tensor], index: int, out: Tensor) -> None:
        """As `Kernels.load_kv`."""
        assert len({entry.states.dtype for entry in cached}) == 1
        _, sequences, kv_heads, slots, width = out.shape  # (2, N, K, S, E)
        _launch(
            prefix.load_kv,
            sequences * 2 * kv_heads,
            *located,
            index,
            out,
            sequences,
            slots,
            FROM=STORED[cached[0].states.dtype],
            SCALED=cached[0].scale is not None,
            HEADS=kv_heads,
            WIDTH=width,
            BLOCK_SLOTS=KV_SLOTS,
            BLOCK_WIDTH=triton.next_power_of_2(width),
        )

    def visible(self, spans: Tensor, keys: int, group: int) -> Tensor:
        """As `Kernels.visible`: the spans (N, T, 4) themselves. No mask is made."""
        return spans

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """As `Kernels.attend`; `visible` holds the spans (N, T, 4) int32."""
        sequences, kv_heads, length, width = query.shape  # N, K, T·G, E
        queries, out = visible.shape[1], torch.empty_like(query)
        # few rows, as of an answer's one token: a smaller block. tl.dot takes no fewer than 16
        block = min(BLOCK_ROWS[query.dtype], max(16, triton.next_power_of_2(length)))
        _launch(
            attention.attend,
            sequences * kv_heads * triton.cdiv(length, block),
            query,
            key,
            value,
            visible,
            out,
            kv_heads,
            queries,
            length // queries,
            key.shape[2],
            WIDTH=width,
            BLOCK_ROWS=block,
            BLOCK_KEYS=BLOCK_KEYS,
            BLOCK_WIDTH=max(16, triton.next_power_of_2(width)),
            num_warps=ATTENTION_WARPS if block == BLOCK_ROWS[query.dtype] else 4,
            num_stages=2,
        )
        return out


def _launch(kernel: Any, programs: int, tensor: Tensor, *arguments: object, **constants: object) -> None:
    """Start a kernel on the GPU that its first argument lies on; the process may have chosen another one."""
    with torch.cuda.device_of(tensor):
        kernel[(programs,)](tensor, *arguments, **constants, enable_fp_fusion=True)


def _warps(block: int) -> int:
    return min(8, max(1, block // 256))


def _kv_heads(part: Heads | None) -> int:
    return 0 if part is None else part.out.shape[1]


def _weight(part: Heads) -> Tensor:
    return part.slot if part.weight is None else part.weight
