"""Random token ids in the shape of a reranker's work: one query, N passages. The ids mean nothing; the work is real.

With Gemma's tokenizer the prompt of "What is the capital of China?" has 65 tokens: 53 up to the query, 7 of the query,
5 after it. Only the query's differ from one prompt to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.reference import mean_of_groups
from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.passage_side import load_passage_side

PREFIX_TOKENS = 53
SUFFIX_TOKENS = 5
QUERY_TOKENS = 7
DISTINCT_QUERIES = 256
FIRST_ID = 16  # ids below are special tokens
TEXT_VOCABULARY = 262_144  # ids above stand for images
ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class Prompts:
    """Prompts by number, all with the same prefix and suffix."""

    vocabulary: int
    prefix_tokens: int = PREFIX_TOKENS
    query_tokens: int = QUERY_TOKENS

    def prompt(self, number: int) -> Tokens:
        """Prompt `number`; the queries of `DISTINCT_QUERIES` numbers in a row differ."""
        return self._prompts[number % DISTINCT_QUERIES]

    @cached_property
    def _prompts(self) -> list[Tokens]:
        prefix = random_ids(self.prefix_tokens, self.vocabulary, seed=1)
        suffix = random_ids(SUFFIX_TOKENS, self.vocabulary, seed=2)
        queries = (random_ids(self.query_tokens, self.vocabulary, seed=1000 + i) for i in range(DISTINCT_QUERIES))
        return [Tokens([*prefix, *query, *suffix], truncated=False) for query in queries]

    @property
    def tokens(self) -> int:
        """Tokens of every prompt."""
        return self.prefix_tokens + self.query_tokens + SUFFIX_TOKENS


@dataclass(frozen=True, slots=True)
class Candidates:
    """The passages of one query: token ids, and their states pooled at `chunk_size`, float32 as a store gives them."""

    passages: list[Tokens]
    pooled: list[Tensor]
    chunk_size: int

    def part(self, start: int, stop: int | None) -> Candidates:
        """Those from `start` to before `stop`; `None` = to the end."""
        return Candidates(self.passages[start:stop], self.pooled[start:stop], self.chunk_size)

    def __len__(self) -> int:
        return len(self.passages)


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Seeded text token ids."""
    high = min(vocabulary, TEXT_VOCABULARY)
    ids: list[int] = torch.randint(FIRST_ID, high, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def random_passages(lengths: Sequence[int], vocabulary: int) -> list[Tokens]:
    """One passage of random ids for each length."""
    return [Tokens(random_ids(length, vocabulary, 10_000 + i), False) for i, length in enumerate(lengths)]


def encode_states(model: Path, passages: Sequence[Tokens], device: torch.device) -> list[Tensor]:
    """Every passage's unpooled states (S, D), float32, by our encoder in float32."""
    longest = max(len(passage.ids) for passage in passages)
    side = load_passage_side(
        open_checkpoint(str(model)), device=device, dtype=torch.float32, max_length=longest, chunk_size=1
    )
    states: list[Tensor] = []
    for start in range(0, len(passages), ENCODED_TOGETHER):
        states += [one.float().cpu() for one in side.encode(passages[start : start + ENCODED_TOGETHER])]
    return states


def pool_candidates(passages: list[Tokens], states: list[Tensor], chunk_size: int) -> Candidates:
    """The passages with their states pooled at `chunk_size`."""
    pooled = [mean_of_groups(one, chunk_size) for one in states]
    return Candidates(passages, pooled, chunk_size)
