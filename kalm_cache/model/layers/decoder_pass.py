"""One run of the decoder's layers over a batch of pairs, layer by layer.

Legend: N query-passage pairs, R rows (own tokens of all pairs, end to end), T own places of a pair, D state
width, H heads, K key/value heads, G = H / K, E head width.
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
from kalm_cache.model.layers.rows import causal_spans, pack_rows, pad_to_bucket
from kalm_cache.model.layers.stack import Stack


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a batch of pairs, each distinct one once: their token ids, and which of them each pair has."""

    ids: Sequence[Sequence[int]]
    of_pair: Sequence[int]

    @property
    def places(self) -> int:
        """T: tokens of the longest one, and up to seven more, as few different shapes are computed fastest."""
        return pad_to_bucket(max(map(len, self.ids)), 8)


class DecoderPass:
    """Own tokens behind their past. Call `layer` for every layer but the last, then `last_keys` or `answer`."""

    def __init__(self, stack: Stack, prompts: Prompts, past: Past) -> None:
        config = stack.config
        distinct, of_pair = pack_rows([len(ids) for ids in prompts.ids]).padded(), torch.tensor(prompts.of_pair)
        rows = pack_rows(distinct.lengths[of_pair].tolist()).padded()
        self._stack, self._past, self._scratch = stack, past, ScratchBuffer()
        self._source = stack.move(
            distinct.first()[of_pair][rows.sequence] + rows.place
        )  # (R,) row of the pair's prompt
        self._last = stack.move(rows.last())  # (N,)
        pairs, own = len(of_pair), prompts.places
        self._key_slot = stack.move(rows.slots(past.slots + own, past.slots))
        self._queries = query_buffer(pairs, own, stack.move(rows.slots(own)), config, stack.dtype)
        place = stack.move(rows.place + past.prefix)
        self._ropes = {
            kind: rope_of(place, past.prefix + own, config.head_dim, config.rope[kind])
            for kind in set(config.layer_types)
        }
        self._spans = {
            kind: stack.move(
                causal_spans(own, past.pooled, past=past.slots, prefix=past.prefix, window=config.window_of(kind))
            )
            for kind in set(config.layer_types)
        }  # (N, T, 4)
        self._visible = {kind: self._see(spans) for kind, spans in self._spans.items()}
        tokens = torch.tensor([token for ids in prompts.ids for token in ids])
        x = stack.embed(stack.move(tokens[distinct.first()[distinct.sequence] + distinct.place]))
        self._h = stack.start(x)  # rows of the distinct prompts: what is only theirs is computed once
        self._x = x[self._source]  # (R, D)

    def layer(self, index: int) -> KeyBuffers:
        """Run one layer. Returns its keys and values, valid until the next call."""
        layer, keys = self._stack.layers[index], self._past.buffers(index, self._stack.layers[index])
        product = self._project(index, layer.qkv)
        self._queries.write_all(
            product, keys, self._key_slot, layer.norms, self._stack.kernels, self._ropes[layer.kind]
        )
        mixed = self._queries.attend(keys, self._visible[layer.kind], self._stack.kernels)
        self._h = self._stack.finish(index, self._x, mixed, self._scratch)
        return keys

    def last_keys(self) -> KeyBuffers:
        """Keys and values of the last layer, for which nothing else of it is needed."""
        index, layer = len(self._stack.layers) - 1, self._stack.layers[-1]
        keys = self._past.buffers(index, layer)
        product = self._project(index, layer.kv)
        keys.write(product, self._key_slot, layer.norms, self._stack.kernels, self._ropes[layer.kind])
        return keys

    def answer(self) -> Tensor:
        """The last layer for each pair's last token alone: its state after the final norm, (N, D)."""
        stack, config, index, layer = (
            self._stack,
            self._stack.config,
            len(self._stack.layers) - 1,
            self._stack.layers[-1],
        )
        keys = self.last_keys()
        pair = torch.arange(len(self._last), device=stack.device)
        queries = query_buffer(len(pair), 1, pair, config, stack.dtype)
        h = select_activation(self._h, self._source[self._last] if index == 0 else self._last)
        queries.write(layer.q(h), layer.norms, stack.kernels, self._ropes[layer.kind].at(self._last))
        place = self._queries.slot[self._last] - pair * self._queries.query.shape[2]
        spans = self._spans[layer.kind][pair, place].unsqueeze(1)  # (N, 1, 4)
        mixed = queries.attend(keys, self._see(spans), stack.kernels)
        answer = stack.finish(index, self._x[self._last], mixed, self._scratch)
        assert isinstance(answer, Tensor)
        return answer

    def _project(self, index: int, linear: Linear) -> Product:
        """A product of the own rows. In the first layer all pairs of a prompt share it."""
        product = linear(self._h)
        return select_product(product, self._source) if index == 0 else product

    def _see(self, spans: Tensor) -> Tensor:
        config, keys = self._stack.config, self._past.slots + self._queries.query.shape[2]
        return self._stack.kernels.visible(spans, keys, config.num_attention_heads // config.num_key_value_heads)
