"""The layers of one side with all that they need to run: what encoder and decoder have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.config import StackConfig
from kalm_cache.model.kernels import Kernels
from kalm_cache.model.kernels.activations import Activation
from kalm_cache.model.layers.embedding import Embedding
from kalm_cache.model.layers.layer import Layer
from kalm_cache.model.layers.linear import ScratchBuffer
from kalm_cache.model.layers.transfer import move_together


@dataclass(frozen=True, slots=True)
class Stack:
    """Layers, final norm (1 + w, (D,) float32), embeddings and kernels.

    dtype is that of the residual stream and of keys and values; `quantized` says that products are int8.
    """

    config: StackConfig
    embed: Embedding
    layers: tuple[Layer, ...]
    norm: Tensor
    kernels: Kernels
    device: torch.device
    dtype: torch.dtype
    quantized: bool

    def start(self, x: Tensor) -> Activation:
        """The first layer's input: x (R, D) after its norm."""
        # every other norm comes with the sum before it, in `finish`; there is none before this one
        first = self.layers[0].norms
        return self.kernels.norm(x, first.pre_attention, first.eps, quantized=self.quantized)

    def finish(self, index: int, x: Tensor, mixed: Tensor, scratch: ScratchBuffer) -> Activation:
        """`Layer.finish` of layer `index`: the next layer's input or, after the last one, the stack's output.

        The output is in the stream's dtype. `x` is changed in place. `scratch` is one for all layers of a run.
        """
        # the next layer's first norm is computed here, with this layer's last sum: one pass over the stream, not two
        last = index == len(self.layers) - 1
        next_norm = self.norm if last else self.layers[index + 1].norms.pre_attention
        quantize_next = self.quantized and not last  # no int8 product reads the stack's output
        return self.layers[index].finish(
            x, mixed, next_norm, self.kernels, scratch, quantized=self.quantized, quantize_next=quantize_next
        )

    def tensors(self) -> Iterator[Tensor]:
        """What it keeps in memory; an embedding table that is mapped from disk is not among it."""
        yield self.norm
        yield from self.embed.tensors()
        for layer in self.layers:
            yield from layer.tensors()

    def move(self, *tensors: Tensor) -> list[Tensor]:
        """To the device, in one copy."""
        return move_together(tensors, self.device)
