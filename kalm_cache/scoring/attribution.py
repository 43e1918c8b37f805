"""Which parts of a passage a query's tokens attend to in the decoder, for one pair. Knows nothing of stores or HTTP.

In every layer prompt keys and pooled states stand in one softmax (merged attention), so that a token's attention to a
pooled state is a probability. It is taken from the decoder's own pass, run again for this one pair with kernels that
write the softmax out: the fast path pays nothing for it.

Whose attention to take, and what mean of it, was measured (`python -m benchmarks.attention`) with `tiny` on 272
questions of SQuAD's dev set: how often the sentence that holds the answer has the highest mean weight, at
r = 1 / 4 / 16

    one sentence drawn                                                      0.21
    last token, mean over all layers and heads                              0.23 / 0.26 / 0.25
    last token, mean over the last two layers                               0.21 / 0.23 / 0.20
    query's tokens, mean over all layers but the last                       0.64 / 0.56 / 0.43
    query's tokens, mean over the last two of these                         0.20 / 0.22 / 0.20
    query's tokens, all of these, each distribution counted by its focus    0.68 / 0.62 / 0.51

so the last of them is given. The last token, from which the margin is read, points nowhere in particular in this model.
In the last layer only its own attention reaches the answer, and that of the query's tokens is not computed.
Attention says where the model looked, which is a hint at why it answered as it did, and not a proof.

Letters in shapes: `kalm_cache.model`. Here N = 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kalm_cache.errors import StoreError
from kalm_cache.model.kernels.torch_kernels import TorchKernels
from kalm_cache.model.layers.decoder_pass import Prompts
from kalm_cache.model.prompts import PASSAGE_PREFIX, PromptTokenizer, PromptTokens, Tokens
from kalm_cache.scoring.batching import SharedPrompt
from kalm_cache.scoring.pooling import PooledPassage, pooled_length
from kalm_cache.scoring.query_side import QuerySide

PREFIX_CHARACTERS = len(PASSAGE_PREFIX)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The text behind one pooled state: characters [start, end), counted as Python does, and how many tokens it has."""

    start: int
    end: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Attention:
    """How one prompt attends to one passage.

    margin: yes_logit − no_logit of this pass.
    layers: for each layer (H, T, P) float32, what each prompt token gives to each pooled state; the rest, up to 1, it
        gives to prompt tokens. Of the last layer only the last token is computed, (H, 1, P).
    """

    margin: float
    layers: list[Tensor]


@dataclass(frozen=True, slots=True)
class Attribution:
    """The margin of a pair, and the weight of each chunk of the passage's text; weights sum to 1."""

    margin: float
    query_truncated: bool
    chunks: list[Chunk]
    weights: list[float]


def attribute(
    side: QuerySide, prompt: PromptTokens, text: str, passage: PooledPassage, *, chunk_size: int, max_length: int
) -> Attribution:
    """Decode one pair, and say how the query's tokens attended to each chunk of the passage's text.

    Args:
        side: whose decoder runs.
        prompt: query and instruction, with the prefix that it shares, if there is one.
        text: the passage's text, of which `passage` was encoded.
        passage: its states, pooled at `chunk_size`.
        chunk_size: tokens of a chunk.
        max_length: tokens of a passage that count, as when it was encoded.

    Raises:
        StoreError: text and states do not belong together.
    """
    chunks = chunk_texts(side.tokenizer, text, chunk_size, max_length)
    if len(chunks) != len(passage.states):
        raise StoreError(
            f"the text has {len(chunks)} chunks of {chunk_size} tokens, but {len(passage.states)} are stored"
        )
    query = query_tokens(prompt.ids, side.tokenize(replace(prompt.prompt, query="")).ids)
    attention = observe(side, prompt, passage.states)
    with_text = [i for i, chunk in enumerate(chunks) if chunk.end > chunk.start]
    # (H, T, P) -> (H, query tokens, chunks with text), without the last layer
    weights = focused_mean([layer[:, query.start : query.stop, with_text] for layer in attention.layers[:-1]])
    return Attribution(attention.margin, prompt.truncated, [chunks[i] for i in with_text], weights.tolist())


@torch.inference_mode()
def observe(side: QuerySide, prompt: Tokens, pooled: Tensor) -> Attention:
    """Decode one pair, and return how it attended to the passage.

    Args:
        side: whose decoder runs, in its dtype and on its device.
        prompt: the whole prompt.
        pooled: (P, D), of any dtype and device.
    """
    stack = side.decoder.stack
    # the same weights, other kernels: a decoder of its own, so that nothing of the fast path changes
    kernels = ObservedKernels(stack.config.num_attention_heads // stack.config.num_key_value_heads)
    decoder = replace(side.decoder, stack=replace(stack, kernels=kernels))
    states = pooled.to(stack.device, stack.dtype)
    shared = prompt.shared if isinstance(prompt, SharedPrompt) else None
    prefix = 0 if shared is None else len(shared.prefix)  # a buffer's first slots; the pooled states come after them
    margin = float(decoder.margins(Prompts([prompt.ids[prefix:]], [0]), states, [len(states)], shared))
    # (H, T, S) -> (H, prompt tokens after the prefix, P), without padding
    rest = len(prompt.ids) - prefix
    layers = [layer[:, :rest, prefix : prefix + len(states)].cpu() for layer in kernels.probabilities]
    # shared tokens were not computed, and see no passage: (H, prompt tokens, P), but for the last layer's one token
    return Attention(margin, [*(F.pad(layer, (0, 0, prefix, 0)) for layer in layers[:-1]), layers[-1]])


def focused_mean(layers: Sequence[Tensor]) -> Tensor:
    """Attention (H, T, P) of each layer -> weights (P,) that sum to 1: a mean of distributions over the passage.

    Each token's attention in each head is one distribution; it counts as far as it is focused, 1 − entropy / log P,
    since most heads of most layers look everywhere, and would bury those that look somewhere.
    """
    distributions = torch.cat([layer.flatten(0, 1) for layer in layers])  # (H, T, P) a layer -> (layers · H · T, P)
    states = distributions.shape[-1]
    if states < 2:
        return torch.ones(states)
    smallest = torch.finfo(torch.float32).eps
    # what the prompt's tokens got is left out: shares of the passage alone, (rows, P). A row of zeros stays one
    shares = distributions / distributions.sum(-1, keepdim=True).clamp(min=smallest)
    entropy = torch.special.entr(shares).sum(-1) / math.log(states)  # (rows,), 0 … 1; entr(0) is 0, not NaN
    focus = (1 - entropy).clamp(min=smallest)  # all even: a plain mean
    weights = (shares * focus.unsqueeze(-1)).sum(0)  # (rows, P) · (rows, 1) -> (P,)
    normalised: Tensor = weights / weights.sum()
    return normalised


def query_tokens(prompt: Sequence[int], without_query: Sequence[int]) -> range:
    """Where the query stands in a prompt: the tokens that an empty query's prompt has not; if there are none, all."""
    before = _common_length(prompt, without_query)
    # at most what is left: where query and template repeat each other, both ends could claim the same tokens
    after = min(_common_length(prompt[::-1], without_query[::-1]), len(without_query) - before)
    return range(before, len(prompt) - after) or range(len(prompt))


def chunk_texts(tokenizer: PromptTokenizer, text: str, chunk_size: int, max_length: int) -> list[Chunk]:
    """The piece of text behind each pooled state of a passage, in order, without overlap.

    A chunk of the template's prefix alone has none (start = end). A character whose tokens lie in two chunks belongs to
    the first.
    """
    offsets = tokenizer.passage_offsets(text, max_length)
    chunks: list[Chunk] = []
    reached = PREFIX_CHARACTERS
    for number in range(pooled_length(len(offsets), chunk_size)):
        chunk = offsets[number * chunk_size : (number + 1) * chunk_size]
        # tokens of one character (byte fallback) have the same offsets: the first chunk that has it reaches its end
        inside = [(start, end) for start, end in chunk if end > reached]
        start = max(reached, min((start for start, _ in inside), default=reached))
        reached = max((end for _, end in inside), default=reached)
        chunks.append(Chunk(min(start, reached) - PREFIX_CHARACTERS, reached - PREFIX_CHARACTERS, len(chunk)))
    return chunks


class ObservedKernels(TorchKernels):
    """Plain torch kernels for a batch of one pair that record every softmax: (H, T, S) float32 a layer."""

    def __init__(self, heads_per_key: int) -> None:
        self._group = heads_per_key
        self.probabilities: list[Tensor] = []

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """As `Kernels.attend`, with the softmax written out."""
        scores = (query @ key.mT).float().masked_fill(~visible, -torch.inf)  # (1, K, T·G, S)
        probabilities = scores.softmax(dim=-1)
        # (1, K, T·G, S) -> (K, T, G, S) -> (K, G, T, S)
        by_head = probabilities[0].unflatten(1, (-1, self._group)).transpose(1, 2)
        self.probabilities.append(by_head.flatten(0, 1))  # (H, T, S)
        return probabilities.to(value.dtype) @ value  # (1, K, T·G, S) @ (1, K, S, E)


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
