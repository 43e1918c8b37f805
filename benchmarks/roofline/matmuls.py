"""The matrix products that T5Gemma2's decoder and encoder cannot do without, bare: shapes, and buffers to run them in.

Every layer has weights of its own, as in the model, so that they come from memory as the model's do; inputs and outputs
of equal shape share a buffer. Nothing is allocated while they run, except for int8 where the processor lacks fast int8
products: there float32 multiplies it part by part.

Legend: N candidates, T prompt tokens, P pooled states of a passage, B passages, S tokens of a passage, D state width,
H heads, K key/value heads, E head width, I width of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.config import StackConfig
from kalm_cache.model.layers.int8 import multiply_int8


@dataclass(frozen=True, slots=True)
class Linear:
    """(rows, inputs) · (outputs, inputs)ᵀ."""

    name: str
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Batched:
    """(batch, rows, inputs) · (batch, inputs, outputs): attention, one product for each passage and key/value head."""

    name: str
    batch: int
    rows: int
    inputs: int
    outputs: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inputs * self.outputs


Product = Linear | Batched


def decoder_products(config: StackConfig, candidates: int, prompt: int, pooled: int) -> list[Product]:
    """One prompt of `prompt` tokens over `candidates` passages of `pooled` states each.

    The first layer projects the prompt once, for all candidates; the last needs keys and values of all tokens, but the
    rest of the last token alone.
    """
    heads, kv, last = config.num_attention_heads, config.num_key_value_heads, len(config.layer_types) - 1
    width = config.head_dim
    products: list[Product] = []
    for layer in range(last + 1):
        tokens = prompt if layer < last else 1  # whose queries count
        own = 1 if layer == 0 else candidates  # copies of the prompt that differ
        if tokens == prompt:
            products.append(Linear("qkv", own * prompt, config.hidden_size, (heads + 2 * kv) * width))
        else:
            products.append(Linear("q", own, config.hidden_size, heads * width))
            products.append(Linear("kv", own * prompt, config.hidden_size, 2 * kv * width))
        products.append(Linear("cross_kv", candidates * pooled, config.hidden_size, 2 * kv * width))
        products += _attention(config, candidates, tokens, prompt + pooled)
        products += _rest_of_layer(config, candidates * tokens)
    return products


def encoder_products(config: StackConfig, passages: int, tokens: int) -> list[Product]:
    """`passages` passages of `tokens` tokens each. Sliding layers count in full, as far as the passage goes."""
    products: list[Product] = []
    outputs = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    for _ in config.layer_types:
        products.append(Linear("qkv", passages * tokens, config.hidden_size, outputs))
        products += _attention(config, passages, tokens, tokens)
        products += _rest_of_layer(config, passages * tokens)
    return products


def _attention(config: StackConfig, batch: int, queries: int, keys: int) -> list[Product]:
    kv = config.num_key_value_heads
    rows = queries * config.num_attention_heads // kv  # the heads that share keys, one after the other
    return [
        Batched("scores", batch * kv, rows, config.head_dim, keys),
        Batched("mix", batch * kv, rows, keys, config.head_dim),
    ]


def _rest_of_layer(config: StackConfig, rows: int) -> list[Product]:
    return [
        Linear("o", rows, config.num_attention_heads * config.head_dim, config.hidden_size),
        Linear("gate_up", rows, config.hidden_size, 2 * config.intermediate_size),
        Linear("down", rows, config.intermediate_size, config.hidden_size),
    ]


class BareProducts:
    """The products with their buffers. int8 means int8 linears that accumulate in int32, and float32 attention."""

    def __init__(self, products: list[Product], dtype: torch.dtype, device: torch.device) -> None:
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._dtype, self._device = dtype, device
        self.steps = [self._step(product) for product in products]

    @torch.inference_mode()
    def run(self) -> None:
        """All of them, in order."""
        for step in self.steps:
            step()

    def _step(self, product: Product) -> Callable[[], object]:
        if isinstance(product, Batched):
            return self._batched(product)
        x = self._buffer("x", (product.rows, product.inputs), self._dtype)
        weight = _noise((product.outputs, product.inputs), self._dtype, self._device)
        if self._dtype == torch.int8:
            sums = self._buffer("sums", (product.rows, product.outputs), torch.int32)
            return lambda: multiply_int8(x, weight, out=sums)
        y = self._buffer("y", (product.rows, product.outputs), self._dtype)
        return lambda: torch.mm(x, weight.t(), out=y)

    def _batched(self, product: Batched) -> Callable[[], object]:
        dtype = torch.float32 if self._dtype == torch.int8 else self._dtype
        left = self._buffer("left", (product.batch, product.rows, product.inputs), dtype)
        # keys lie with their width last, whichever way the product reads them
        if product.name == "scores":
            right = self._buffer("keys", (product.batch, product.outputs, product.inputs), dtype).transpose(1, 2)
        else:
            right = self._buffer("keys", (product.batch, product.inputs, product.outputs), dtype)
        out = self._buffer("out", (product.batch, product.rows, product.outputs), dtype)
        return lambda: torch.bmm(left, right, out=out)

    def _buffer(self, role: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        key = (role, shape, dtype)
        if key not in self._buffers:
            self._buffers[key] = _noise(shape, dtype, self._device)
        return self._buffers[key]


def _noise(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype in (torch.int8, torch.int32):
        return torch.randint(-127, 128, shape, dtype=dtype, generator=generator).to(device)
    return torch.randn(shape, generator=generator).to(device, dtype)
