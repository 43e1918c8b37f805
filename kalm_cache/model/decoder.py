"""The query side of T5Gemma2: prompt tokens and pooled passage states -> margin. Knows nothing of files or encoders.

Letters in shapes: `kalm_cache.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kalm_cache.model.kernels.prefix_kv import PrefixKV, SharedPrefixKV, make_prefix_kv
from kalm_cache.model.layers.attention import KeyBuffers
from kalm_cache.model.layers.decoder_pass import DecoderPass, Prompts
from kalm_cache.model.layers.past import EmptyPast, Past, PooledPast, PrefixPast
from kalm_cache.model.layers.stack import Stack


@dataclass(frozen=True, slots=True)
class QueryDecoder:
    """Causal decoder with merged attention and, in place of the vocabulary head, the rows of `yes` and `no`.

    answer_rows (2, D) float32: the head's rows of `yes` and `no`, in this order.
    isolated_prefix: it was trained for prompts whose tokens before the query see no passage: what `margins` takes as
        `shared` is of `isolated`, and nothing is prefilled.
    """

    stack: Stack
    answer_rows: Tensor
    isolated_prefix: bool = False

    @torch.inference_mode()
    def margins(
        self, prompts: Prompts, pooled: Tensor, counts: Sequence[int], shared: SharedPrefixKV | None = None
    ) -> Tensor:
        """The margin yes_logit − no_logit of every pair.

        Args:
            prompts: whole prompts, or what comes after the shared prefix in each, a token or more.
            pooled: (sum of counts, D) pooled states of the pairs' passages, end to end, in the stream's dtype.
            counts: P of each pair.
            shared: what all prompts begin with, its keys and values the same for all passages; `None` = nothing.

        Returns:
            (N,) float32 on the decoder's device.
        """
        return self._margins(prompts, PooledPast(self.stack, pooled, counts, prompts.slots, shared))

    @torch.inference_mode()
    def margins_after(self, rests: Prompts, cached: Sequence[PrefixKV]) -> Tensor:
        """`margins` of prompts that begin with the cached prefix of each pair's passage, the same for all.

        Args:
            rests: what comes after the prefix in each prompt, a token or more.
            cached: one a pair, of `prefill`.
        """
        return self._margins(rests, PrefixPast(self.stack, cached, rests.slots))

    @torch.inference_mode()
    def prefill(
        self, prefix: tuple[int, ...], pooled: Tensor, counts: Sequence[int], dtype: torch.dtype
    ) -> list[PrefixKV]:
        """Keys and values of a prompt's first tokens over each passage, and of its pooled states.

        They depend on nothing that comes after: every prompt that begins with `prefix` can go on from them.

        Args:
            prefix: token ids that the prompts begin with, L ≥ 1.
            pooled: as in `margins`.
            counts: P of each passage.
            dtype: of the cached keys and values; int8 has one scale for each vector.
        """
        prompts = Prompts([prefix], [0] * len(counts))  # one prompt, computed once up to the first layer's attention
        past = PooledPast(self.stack, pooled, counts, prompts.slots)
        # of a buffer's S slots, the L that the prefix takes: behind the past, before the padding
        run, new = DecoderPass(self.stack, prompts, past), slice(past.slots, past.slots + len(prefix))
        layers = [_split(run.layer(index), new, counts) for index in range(len(self.stack.layers) - 1)]
        layers.append(_split(run.last_keys(), new, counts))  # no later layer needs the last one's states
        # layer by layer, a list of passages -> passage by passage, its layers stacked
        passages = (torch.stack(states) for states in zip(*layers, strict=True))  # (layers, 2, K, L + P, E)
        return [make_prefix_kv(prefix, count, states, dtype) for count, states in zip(counts, passages, strict=True)]

    @torch.inference_mode()
    def isolated(self, prefix: tuple[int, ...]) -> SharedPrefixKV:
        """Keys and values of a prompt's first tokens, L ≥ 1, that see themselves alone: the same for all passages."""
        prompts = Prompts([prefix], [0])
        past = EmptyPast(self.stack, prompts.slots)
        run, new = DecoderPass(self.stack, prompts, past), slice(past.slots, past.slots + len(prefix))
        layers = [run.layer(index).both[:, 0, :, new, 0].clone() for index in range(len(self.stack.layers) - 1)]
        layers.append(run.last_keys().both[:, 0, :, new, 0])  # (2, K, L, E) each
        return SharedPrefixKV(prefix, torch.stack(layers))

    def _margins(self, prompts: Prompts, past: Past) -> Tensor:
        run = DecoderPass(self.stack, prompts, past)
        for index in range(len(self.stack.layers) - 1):
            run.layer(index)
        # float32: bfloat16 logits of 4 to 8 lie 2⁻⁵ apart, and the margin is a difference of two
        logits = self._soften(run.answer().float() @ self.answer_rows.T)  # (N, D) @ (D, 2) -> (N, 2)
        return logits[:, 0] - logits[:, 1]  # (N,)

    def _soften(self, logits: Tensor) -> Tensor:
        """Logits (N, 2), squashed below the checkpoint's cap if it has one."""
        # the reference caps each logit of the vocabulary by itself, so that two of them can be had without the others
        cap = self.stack.config.final_logit_softcapping
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _split(buffers: KeyBuffers, new: slice, counts: Sequence[int]) -> list[Tensor]:
    """The new tokens' keys and values, then the pooled states', of each passage: (2, K, L + P, E).

    The run has pooled states first; a later run that goes on from a cached prefix has the prefix first.
    """
    both = buffers.both.squeeze(-2)  # (2, N, K, S, 1, E) -> (2, N, K, S, E)
    return [torch.cat((both[:, n, :, new], both[:, n, :, :count]), dim=-2) for n, count in enumerate(counts)]
