"""One run of the decoder's layers over a batch of pairs, layer by layer.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.kernels.activations import Product, select_activation, select_product
from kalm_cache.model.layers.attention import KeyBuffers, query_buffer, rope_of
from kalm_cache.model.layers.linear import Linear, ScratchBuffer
from kalm_cache.model.layers.past import Past
from kalm_cache.model.layers.rows import Rows, causal_spans, pack_rows, pad_to_bucket
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


class DecoderPass:
    """New tokens behind their past. Call `layer` for every layer but the last, then `last_keys` or `answer`."""

    def __init__(self, stack: Stack, prompts: Prompts, past: Past) -> None:
        self._stack, self._past, self._scratch = stack, past, ScratchBuffer()
        distinct, of_pair = pack_rows([len(ids) for ids in prompts.ids]).padded(), torch.tensor(prompts.of_pair)
        rows = pack_rows(distinct.lengths[of_pair].tolist()).padded()  # R rows, pair after pair
        # (R,): the row of each pair's token among those of the distinct prompts
        self._source = stack.move(distinct.first()[of_pair][rows.sequence] + rows.position)
        self._last = stack.move(rows.last())  # (N,): each pair's last token, whose state answers
        self._lay_out(rows, len(of_pair), prompts.slots)
        # Before the first layer's attention a token depends on nothing but its prompt: distinct prompts are computed
        # once, and only the residual stream is spread over the pairs
        tokens = torch.tensor([token for ids in prompts.ids for token in ids])  # (tokens of the distinct prompts,)
        x = stack.embed(stack.move(tokens[distinct.first()[distinct.sequence] + distinct.position]))
        self._h = stack.start(x)  # (distinct rows, D); (R, D) from the second layer on
        self._x = x[self._source]  # (distinct rows, D) -> (R, D)

    def _lay_out(self, rows: Rows, pairs: int, slots: int) -> None:
        """Where queries and keys of the new tokens go, how they are rotated, and which slots each token sees."""
        stack, past, config = self._stack, self._past, self._stack.config
        self._key_slot = stack.move(rows.slots(past.slots + slots, past.slots))  # (R,) of N·S
        # (N, K, T, G, E): one buffer, written anew by every layer but the last
        self._queries = query_buffer(pairs, slots, stack.move(rows.slots(slots)), config, stack.dtype)
        position = stack.move(rows.position + past.prefix)  # (R,): in the whole prompt; pooled states take no position
        self._ropes, self._spans, self._visible = {}, {}, {}
        for kind in set(config.layer_types):
            self._ropes[kind] = rope_of(position, past.prefix + slots, config.head_dim, config.rope[kind])
            spans = causal_spans(slots, past.pooled, past=past.slots, prefix=past.prefix, window=config.window_of(kind))
            self._spans[kind] = stack.move(spans)  # (N, T, 4)
            self._visible[kind] = self._see(self._spans[kind])

    def layer(self, index: int) -> KeyBuffers:
        """Run one layer. Returns its keys and values, valid until the next call."""
        layer, keys = self._stack.layers[index], self._past.buffers(index, self._stack.layers[index])
        product = self._project(index, layer.qkv)  # (R, (H + 2·K)·E)
        rope = self._ropes[layer.kind]
        self._queries.write_all(product, keys, self._key_slot, layer.norms, self._stack.kernels, rope)
        mixed = self._queries.attend(keys, self._visible[layer.kind], self._stack.kernels)  # (R, H·E)
        self._h = self._stack.finish(index, self._x, mixed, self._scratch)  # (R, D)
        return keys

    def last_keys(self) -> KeyBuffers:
        """Keys and values of the last layer, for which nothing else of it is needed."""
        index, layer = len(self._stack.layers) - 1, self._stack.layers[-1]
        keys = self._past.buffers(index, layer)
        product = self._project(index, layer.kv)  # (R, 2·K·E)
        keys.write(product, self._key_slot, layer.norms, self._stack.kernels, self._ropes[layer.kind])
        return keys

    def answer(self) -> Tensor:
        """The last layer for each pair's last token alone: its state after the final norm, (N, D).

        Of the last layer the other tokens give keys and values; no later layer reads their states.
        """
        stack, index, layer = self._stack, len(self._stack.layers) - 1, self._stack.layers[-1]
        keys = self.last_keys()
        pair = torch.arange(len(self._last), device=stack.device)  # (N,)
        queries = query_buffer(len(pair), 1, pair, stack.config, stack.dtype)  # (N, K, 1, G, E)
        # in a decoder of one layer, `_h` still holds the distinct prompts' rows
        h = select_activation(self._h, self._source[self._last] if index == 0 else self._last)  # (N, D)
        queries.write(layer.q(h), layer.norms, stack.kernels, self._ropes[layer.kind].at(self._last))
        token = self._queries.slot[self._last] - pair * self._queries.query.shape[2]  # (N,): slot of N·T -> of T
        spans = self._spans[layer.kind][pair, token].unsqueeze(1)  # (N, T, 4) -> (N, 1, 4)
        mixed = queries.attend(keys, self._see(spans), stack.kernels)  # (N, H·E)
        answer = stack.finish(index, self._x[self._last], mixed, self._scratch)  # (N, D)
        assert isinstance(answer, Tensor)
        return answer

    def _project(self, index: int, linear: Linear) -> Product:
        """A product of the new tokens' rows, (R, O). In the first layer all pairs of a prompt share it."""
        product = linear(self._h)
        return select_product(product, self._source) if index == 0 else product

    def _see(self, spans: Tensor) -> Tensor:
        """Spans (N, T, 4) -> what attention takes; the G query heads of a key/value head see alike."""
        config, keys = self._stack.config, self._past.slots + self._queries.query.shape[2]
        return self._stack.kernels.visible(spans, keys, config.num_attention_heads // config.num_key_value_heads)
