"""What a batch's new tokens see before them: a prefix, cached or shared by all passages, pooled states, or nothing.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV, SharedPrefixKV
from kalm_cache.model.layers.attention import KeyBuffers, key_buffers
from kalm_cache.model.layers.layer import Layer
from kalm_cache.model.layers.rows import pack_rows, pad_to_bucket
from kalm_cache.model.layers.stack import Stack


class Past(Protocol):
    """The slots before the new tokens: `prefix` prompt tokens, then `pooled` (N,) states, padded to `slots`.

    `inputs` are on the CPU, or anywhere; `start` takes them on the device, where whoever runs the batch moves them
    together with what it needs itself.
    """

    prefix: int
    pooled: Tensor
    slots: int
    inputs: Sequence[Tensor]

    def start(self, inputs: Sequence[Tensor]) -> None:
        """Begin a run. inputs: as `inputs`, on the device."""
        ...

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """Buffers of S = `slots` + new slots for one layer, the past written; valid until the next call."""
        ...


class PooledPast:
    """The passages' pooled states, projected layer by layer: all pairs' in one product. They are not rotated.

    Before them stands the prefix that the passages share, if there is one.
    """

    def __init__(
        self,
        stack: Stack,
        pooled: Tensor,
        counts: Sequence[int],
        new_slots: int,
        shared: SharedPrefixKV | None = None,
    ) -> None:
        """pooled (sum of counts, D) in the stream's dtype, end to end, on the device or a CPU.

        `new_slots` are left free after the past.
        """
        rows = pack_rows(counts).padded()  # a common number of rows: int8 and bfloat16 products compile for the shape
        self.prefix = 0 if shared is None else len(shared.prefix)
        self.pooled, self.slots = rows.lengths, _past_slots(self.prefix + rows.longest, new_slots)
        self._stack, self._shared = stack, shared
        # (ΣP, D); (ΣP + padding,) of N·S
        self.inputs: Sequence[Tensor] = (pooled, rows.slots(self.slots + new_slots, self.prefix))
        self._buffers = key_buffers(len(counts), self.slots + new_slots, stack.config, stack.dtype, stack.device)

    def start(self, inputs: Sequence[Tensor]) -> None:
        """Take the pooled states as every layer's product does."""
        pooled, self._slot = inputs
        # padded rows repeat the last state, and are written to its slot again: the same numbers, so no harm
        padding = len(self._slot) - len(pooled)
        pooled = torch.cat((pooled, pooled[-1:].expand(padding, -1)))  # (ΣP, D) -> (ΣP + padding, D)
        # states enter every layer as they are: they are quantised once
        self._states = self._stack.kernels.quantize(pooled) if self._stack.quantized else pooled

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """The same buffers every time."""
        # each layer writes the same slots: the others hold the zeros that they were made with
        self._buffers.write(layer.kv(self._states), self._slot, layer.norms, self._stack.kernels)  # (ΣP, 2·K·E)
        if self._shared is not None:
            prefix = self._shared.states[index]  # (2, K, L, E) -> (2, N, K, L, 1, E)
            self._buffers.both[:, :, :, : self.prefix] = prefix.unsqueeze(1).unsqueeze(-2)
        return self._buffers


class EmptyPast:
    """Nothing: a prompt's first tokens that see themselves alone."""

    prefix = 0
    inputs: Sequence[Tensor] = ()

    def __init__(self, stack: Stack, new_slots: int) -> None:
        self.pooled, self.slots = torch.zeros(1, dtype=torch.int64), _past_slots(0, new_slots)
        self._buffers = key_buffers(1, self.slots + new_slots, stack.config, stack.dtype, stack.device)

    def start(self, inputs: Sequence[Tensor]) -> None:
        """There is nothing to take."""

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """The same buffers every time."""
        return self._buffers


class PrefixPast:
    """Prefix and pooled states from the prefix cache, copied into the buffers layer by layer."""

    def __init__(self, stack: Stack, cached: Sequence[PrefixKV], new_slots: int) -> None:
        self.prefix = len(cached[0].prefix)
        self.pooled = torch.tensor([entry.pooled for entry in cached])  # (N,)
        # one buffer for all pairs: the prefix is equally long, pooled states are not, and padding comes after them
        self.slots = _past_slots(self.prefix + int(self.pooled.max()), new_slots)
        self._cached, self._kernels = cached, stack.kernels
        self.inputs = stack.kernels.locate(cached)
        self._buffers = key_buffers(len(cached), self.slots + new_slots, stack.config, stack.dtype, stack.device)

    def start(self, inputs: Sequence[Tensor]) -> None:
        """Keep where the entries lie."""
        self._located = inputs

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """The same buffers every time."""
        both = self._buffers.both.squeeze(-2)  # (2, N, K, S, 1, E) -> (2, N, K, S, E)
        self._kernels.load_kv(self._cached, self._located, index, both)
        return self._buffers


def _past_slots(longest: int, new_slots: int) -> int:
    """Slots for the longest past, so that S is a common number: attention is compiled for few shapes."""
    return pad_to_bucket(longest + new_slots) - new_slots
