"""What a prompt's own tokens see before them: keys and values of pooled states, or those kept of one run.

Legend: N pairs, P pooled states of a pair, L prefix tokens, D state width, K key/value heads, E head width, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV
from kalm_cache.model.layers.attention import KeyBuffers, key_buffers
from kalm_cache.model.layers.layer import Layer
from kalm_cache.model.layers.rows import pack_rows, pad_to_bucket
from kalm_cache.model.layers.stack import Stack


class Past(Protocol):
    """The slots before the own tokens: `prefix` prompt tokens, then `pooled` (N,) states, padded to `slots`."""

    prefix: int
    pooled: Tensor
    slots: int

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """Buffers of S = `slots` + own places for one layer, the past written; valid until the next call."""
        ...


class PooledPast:
    """The passages' pooled states, projected layer by layer: all pairs' in one product. They are not rotated."""

    prefix = 0

    def __init__(self, stack: Stack, pooled: Tensor, counts: Sequence[int], own: int) -> None:
        """pooled (sum of counts, D) in the stream's dtype, end to end; `own` places are left after the past."""
        rows = pack_rows(counts).padded()
        self.pooled, self.slots = rows.lengths, _slots(rows.longest, own)
        self._stack = stack
        pooled = torch.cat((pooled, pooled[-1:].expand(len(rows.place) - len(pooled), -1)))
        self._states = stack.kernels.quantize(pooled) if stack.quantized else pooled
        self._slot = stack.move(rows.slots(self.slots + own))
        self._buffers = key_buffers(len(counts), self.slots + own, stack.config, stack.dtype, stack.device)

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """The same buffers every time."""
        self._buffers.write(layer.kv(self._states), self._slot, layer.norms, self._stack.kernels)
        return self._buffers


class PrefixPast:
    """Prefix and pooled states as they were kept, copied into the buffers layer by layer."""

    def __init__(self, stack: Stack, cached: Sequence[PrefixKV], own: int) -> None:
        self.prefix = len(cached[0].prefix)
        self.pooled = torch.tensor([entry.pooled for entry in cached])
        self.slots = _slots(self.prefix + int(self.pooled.max()), own)
        self._cached, self._kernels = cached, stack.kernels
        self._buffers = key_buffers(len(cached), self.slots + own, stack.config, stack.dtype, stack.device)

    def buffers(self, index: int, layer: Layer) -> KeyBuffers:
        """The same buffers every time."""
        self._kernels.load_kv(self._cached, index, self._buffers.both.squeeze(-2))
        return self._buffers


def _slots(longest: int, own: int) -> int:
    """Room for the longest past, so that with the own places it is a common number."""
    return pad_to_bucket(longest + own) - own
