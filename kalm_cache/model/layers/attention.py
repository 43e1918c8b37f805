"""The heads of a batch, in buffers that attention reads, and back to rows; attention itself is in `kernels`.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.config import RopeConfig, StackConfig
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.activations import Product
from kalm_cache.model.kernels.heads import Heads, Rope
from kalm_cache.model.layers.layer import Norms
from kalm_cache.model.precision import widen

ROPE_ROWS = 1024


@dataclass(frozen=True, slots=True)
class KeyBuffers:
    """Keys and values of a batch: `both` (2, N, K, S, 1, E). Slots that no row is written to must hold zeros.

    The 1 stands where queries have G: kernels write either with the same code.
    """

    # zeros, as a slot that is not seen gets weight 0 in the product with the values, and 0 · NaN would be NaN
    both: Tensor

    @property
    def key(self) -> Tensor:
        """(N, K, S, 1, E)."""
        return self.both[0]

    @property
    def value(self) -> Tensor:
        """(N, K, S, 1, E)."""
        return self.both[1]

    def write(self, product: Product, slot: Tensor, norms: Norms, kernels: Kernels, rope: Rope | None = None) -> None:
        """Split a product (R, 2·K·E) of keys and values; row i goes to slot[i] of N·S."""
        # values have no norm, and no rotation either
        keys, values = Heads(self.key, slot, norms.key), Heads(self.value, slot)
        kernels.split_heads(product, queries=None, keys=keys, values=values, rope=rope, eps=norms.eps)


@dataclass(frozen=True, slots=True)
class QueryBuffer:
    """Queries of a batch, (N, K, T, G, E), and the slot (R,) of N·T of each row.

    T before G: the G query heads that share a key/value head are T·G rows of one product with its keys.
    """

    query: Tensor
    slot: Tensor

    def write(self, product: Product, norms: Norms, kernels: Kernels, rope: Rope) -> None:
        """Split a product (R, H·E) of queries."""
        queries = Heads(self.query, self.slot, norms.query)
        kernels.split_heads(product, queries=queries, keys=None, values=None, rope=rope, eps=norms.eps)

    def write_all(
        self, product: Product, to: KeyBuffers, key_slot: Tensor, norms: Norms, kernels: Kernels, rope: Rope
    ) -> None:
        """Split a product (R, (H + 2·K)·E) of queries, keys and values in one pass."""
        queries = Heads(self.query, self.slot, norms.query)
        keys, values = Heads(to.key, key_slot, norms.key), Heads(to.value, key_slot)
        kernels.split_heads(product, queries=queries, keys=keys, values=values, rope=rope, eps=norms.eps)

    def attend(self, to: KeyBuffers, visible: Tensor, kernels: Kernels) -> Tensor:
        """Mix the values: (R, H·E)."""
        sequences, kv_heads, longest, group, width = self.query.shape  # N, K, T, G, E
        query = self.query.flatten(2, 3)  # (N, K, T, G, E) -> (N, K, T·G, E)
        key, value = to.key.flatten(2, 3), to.value.flatten(2, 3)  # (N, K, S, 1, E) -> (N, K, S, E)
        mixed = kernels.attend(widen(query), widen(key), widen(value), visible).to(query.dtype)  # (N, K, T·G, E)
        by_token = mixed.unflatten(2, (longest, group)).transpose(1, 2)  # -> (N, K, T, G, E) -> (N, T, K, G, E)
        # a copy, as K still stands before T in memory. Head k·G + g of the reference is [k, g]: o takes them in order
        rows = by_token.reshape(sequences * longest, kv_heads * group * width)  # (N·T, H·E)
        # (R, H·E): padding is dropped. `rows[slot]` copies the same number by number, more slowly
        return rows.index_select(0, self.slot)


def query_buffer(sequences: int, longest: int, slot: Tensor, config: StackConfig, dtype: torch.dtype) -> QueryBuffer:
    """A buffer on the slots' device, zeroed: what lies in a batch's padding may be denormal, and slow every product."""
    group = config.num_attention_heads // config.num_key_value_heads
    shape = (sequences, config.num_key_value_heads, longest, group, config.head_dim)  # (N, K, T, G, E)
    return QueryBuffer(torch.zeros(shape, dtype=dtype, device=slot.device), slot)


def key_buffers(
    sequences: int, slots: int, config: StackConfig, dtype: torch.dtype, device: torch.device
) -> KeyBuffers:
    """Zeroed buffers."""
    shape = (2, sequences, config.num_key_value_heads, slots, 1, config.head_dim)  # (2, N, K, S, 1, E)
    return KeyBuffers(torch.zeros(shape, dtype=dtype, device=device))


def rope_of(position: Tensor, length: int, head_dim: int, rope: RopeConfig) -> Rope:
    """The rotation of positions (R,) int64, each below `length`."""
    rows = max(ROPE_ROWS, 1 << (length - 1).bit_length())  # a power of two: few different tables are cached
    return Rope(*_rope_table(rows, head_dim, rope, position.device), position)


@functools.lru_cache(maxsize=16)
def _rope_table(length: int, head_dim: int, rope: RopeConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, (length, E / 2) float32 each."""
    # float32 in every run: to bfloat16 positions 256 and 257 are one. The reference computes angles in float32, too,
    # but rounds cos and sin to the run's dtype
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim  # (E / 2,)
    # linear scaling: positions divided by `factor` are frequencies divided by it
    inverse_frequency = 1.0 / (rope.theta**exponent) / rope.factor  # (E / 2,)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequency)  # (length, E / 2)
    return angle.cos().to(device), angle.sin().to(device)
