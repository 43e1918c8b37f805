"""One run of the decoder's layers over a batch of pairs, layer by layer.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kalm_cache.model.config import StackConfig
from kalm_cache.model.kernels.activations import Product, select_activation, select_product
from kalm_cache.model.layers.attention import KeyBuffers, query_buffer, rope_of
from kalm_cache.model.layers.linear import Linear, ScratchBuffer
from kalm_cache.model.layers.past import Past
from kalm_cache.model.layers.rows import causal_spans, pack_rows, pad_to_bucket
from kalm_cache.model.layers.stack import Stack


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a batch of pairs, each distinct one once: their token ids, and which of them each pair has."""

    ids: Sequence[Sequence[int]]
    of_pair: Sequence[int]

    @property
    def slots(self) -> int:
        """T: tokens of the longest one, and some more: few different shapes are computed fastest."""
        return pad_to_bucket(max(map(len, self.ids)), 8)


class Layout(NamedTuple):
    """Where the new tokens of a batch stand: on the CPU, then on the device.

    tokens (R',) int64: of the distinct prompts. source (R,): the row of each pair's token among them.
    query_slot, key_slot (R,): of N·T and of N·S. position (R,): in the whole prompt; pooled states take none.
    last, pair (N,): the row of each pair's last token, whose state answers; 0 … N − 1.
    spans (kinds, N, T, 4) int32, in the order of `StackConfig.kinds`: what the tokens see in each kind of layer.
    answer_spans (N, 1, 4): what the last tokens see in the last layer.
    """

    tokens: Tensor
    source: Tensor
    query_slot: Tensor
    key_slot: Tensor
    position: Tensor
    last: Tensor
    pair: Tensor
    spans: Tensor
    answer_spans: Tensor


def lay_out(prompts: Prompts, past: Past, config: StackConfig) -> Layout:
    """The layout of a batch."""
    distinct, of_pair = pack_rows([len(ids) for ids in prompts.ids]).padded(), torch.tensor(prompts.of_pair)
    rows, slots = pack_rows(distinct.lengths[of_pair].tolist()).padded(), prompts.slots  # R rows, pair after pair
    tokens = torch.tensor([token for ids in prompts.ids for token in ids])  # (tokens of the distinct prompts,)
    last, pair, kinds = rows.last(), torch.arange(len(of_pair)), config.kinds
    spans = [  # (N, T, 4) each
        causal_spans(slots, past.pooled, past=past.slots, prefix=past.prefix, window=config.window_of(kind))
        for kind in kinds
    ]
    return Layout(
        tokens=tokens[distinct.first()[distinct.sequence] + distinct.position],
        source=distinct.first()[of_pair][rows.sequence] + rows.position,
        query_slot=rows.slots(slots),
        key_slot=rows.slots(past.slots + slots, past.slots),
        position=rows.position + past.prefix,
        last=last,
        pair=pair,
        spans=torch.stack(spans),
        answer_spans=spans[kinds.index(config.layer_types[-1])][pair, rows.position[last]].unsqueeze(1),
    )


class DecoderPass:
    """New tokens behind their past. Call `layer` for every layer but the last, then `last_keys` or `answer`."""

    def __init__(self, stack: Stack, prompts: Prompts, past: Past) -> None:
        self._stack, self._past, self._scratch = stack, past, ScratchBuffer()
        config, layout = stack.config, lay_out(prompts, past, stack.config)
        moved = stack.move(*layout, *past.inputs)  # all that the device gets, in one copy
        self._at = Layout(*moved[: len(layout)])
        past.start(moved[len(layout) :])
        # (N, K, T, G, E): one buffer, written anew by every layer but the last
        self._queries = query_buffer(len(layout.pair), prompts.slots, self._at.query_slot, config, stack.dtype)
        self._ropes, self._visible = {}, {}
        for kind, spans in zip(config.kinds, self._at.spans, strict=True):
            length = past.prefix + prompts.slots
            self._ropes[kind] = rope_of(self._at.position, length, config.head_dim, config.rope[kind])
            self._visible[kind] = self._see(spans)
        # Before the first layer's attention a token depends on nothing but its prompt: distinct prompts are computed
        # once, and only the residual stream is spread over the pairs
        x = stack.embed(self._at.tokens)
        self._h = stack.start(x)  # (distinct rows, D); (R, D) from the second layer on
        self._x = x[self._at.source]  # (distinct rows, D) -> (R, D)

    def layer(self, index: int) -> KeyBuffers:
        """Run one layer. Returns its keys and values, valid until the next call."""
        layer, keys = self._stack.layers[index], self._past.buffers(index, self._stack.layers[index])
        product = self._project(index, layer.qkv)  # (R, (H + 2·K)·E)
        rope = self._ropes[layer.kind]
        self._queries.write_all(product, keys, self._at.key_slot, layer.norms, self._stack.kernels, rope)
        mixed = self._queries.attend(keys, self._visible[layer.kind], self._stack.kernels)  # (R, H·E)
        self._h = self._stack.finish(index, self._x, mixed, self._scratch)  # (R, D)
        return keys

    def last_keys(self) -> KeyBuffers:
        """Keys and values of the last layer, for which nothing else of it is needed."""
        index, layer = len(self._stack.layers) - 1, self._stack.layers[-1]
        keys = self._past.buffers(index, layer)
        product = self._project(index, layer.kv)  # (R, 2·K·E)
        keys.write(product, self._at.key_slot, layer.norms, self._stack.kernels, self._ropes[layer.kind])
        return keys

    def answer(self) -> Tensor:
        """The last layer for each pair's last token alone: its state after the final norm, (N, D).

        Of the last layer the other tokens give keys and values; no later layer reads their states.
        """
        stack, index, layer = self._stack, len(self._stack.layers) - 1, self._stack.layers[-1]
        keys = self.last_keys()
        last, pair = self._at.last, self._at.pair  # (N,) each
        queries = query_buffer(len(pair), 1, pair, stack.config, stack.dtype)  # (N, K, 1, G, E)
        # in a decoder of one layer, `_h` still holds the distinct prompts' rows
        h = select_activation(self._h, self._at.source[last] if index == 0 else last)  # (N, D)
        queries.write(layer.q(h), layer.norms, stack.kernels, self._ropes[layer.kind].at(last))
        mixed = queries.attend(keys, self._see(self._at.answer_spans), stack.kernels)  # (N, H·E)
        answer = stack.finish(index, self._x[last], mixed, self._scratch)  # (N, D)
        assert isinstance(answer, Tensor)
        return answer

    def _project(self, index: int, linear: Linear) -> Product:
        """A product of the new tokens' rows, (R, O). In the first layer all pairs of a prompt share it."""
        product = linear(self._h)
        return select_product(product, self._at.source) if index == 0 else product

    def _see(self, spans: Tensor) -> Tensor:
        """Spans (N, T, 4) -> what attention takes; the G query heads of a key/value head see alike."""
        config, keys = self._stack.config, self._past.slots + self._queries.query.shape[2]
        return self._stack.kernels.visible(spans, keys, config.num_attention_heads // config.num_key_value_heads)
