"""The passage side of T5Gemma2: token ids -> last hidden states. Knows nothing of pooling, files or queries.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.layers.attention import key_buffers, query_buffer, rope_of
from kalm_cache.model.layers.linear import ScratchBuffer
from kalm_cache.model.layers.rows import bidirectional_spans, pack_rows
from kalm_cache.model.layers.stack import Stack


@dataclass(frozen=True, slots=True)
class PassageEncoder:
    """Bidirectional text encoder; its sliding layers see a window around each token. No vision tower is ever built."""

    stack: Stack

    @torch.inference_mode()
    def __call__(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Last hidden states after the final norm.

        Args:
            ids: (R,) int64 on any device, the passages' tokens end to end.
            lengths: tokens of each passage.

        Returns:
            (R, D) on the encoder's device, in the dtype of its residual stream.
        """
        stack, config, kernels = self.stack, self.stack.config, self.stack.kernels
        rows = pack_rows(lengths)
        longest = rows.longest
        kinds = config.kinds  # layers of one kind see the same slots and turn by the same angles
        spans = [bidirectional_spans(rows.lengths, config.window_of(kind)) for kind in kinds]  # (N, T, 4) each
        # (R,) of N·T, (R,), (R,)
        slot, position, ids, *spans = stack.move(rows.slots(longest), rows.position, ids, *spans)
        # products run over packed rows; attention alone over buffers padded to the longest passage
        queries = query_buffer(len(lengths), longest, slot, config, stack.dtype)  # (N, K, T, G, E)
        keys = key_buffers(len(lengths), longest, config, stack.dtype, stack.device)  # (2, N, K, T, 1, E)
        group = config.num_attention_heads // config.num_key_value_heads
        visible = {kind: kernels.visible(each, longest, group) for kind, each in zip(kinds, spans, strict=True)}
        ropes = {kind: rope_of(position, longest, config.head_dim, config.rope[kind]) for kind in kinds}
        x = stack.embed(ids)  # (R, D)
        h, scratch = stack.start(x), ScratchBuffer()  # h (R, D): x after the norm, what the next product takes
        for index, layer in enumerate(stack.layers):
            queries.write_all(layer.qkv(h), keys, slot, layer.norms, kernels, ropes[layer.kind])  # (R, (H + 2·K)·E)
            mixed = queries.attend(keys, visible[layer.kind], kernels)  # (R, H·E)
            h = stack.finish(index, x, mixed, scratch)
        assert isinstance(h, Tensor)
        return h
