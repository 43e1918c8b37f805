"""A stream of requests as a RAG application sends them: a query, and the passages that its search found.

Passages are random words of the model's own vocabulary, as many as make the wanted number of tokens. Those of a request
are distinct and come by Zipf's law. Knows nothing of services or caches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError
from kalm_cache.model.prompts import PromptTokenizer

QUERY_WORDS = 12


@dataclass(frozen=True, slots=True)
class Stream:
    """passages: how many there are. tokens: of each, the template's prefix included. documents: of a request."""

    passages: int
    tokens: int
    documents: int
    exponent: float = 1.0

    def requests(self, count: int, seed: int) -> NDArray[np.int64]:
        """Passage numbers (count, documents): those of a row are drawn one after the other, without putting back."""
        generator = np.random.default_rng(seed)
        names = np.random.default_rng(0).permutation(self.passages)  # the same ranks in every part of the stream
        log_weights = -self.exponent * np.log(np.arange(1, self.passages + 1))
        # the greatest of log weight + Gumbel noise are a draw without replacement (Efraimidis and Spirakis, 2006)
        rows = [
            np.argpartition(-(log_weights + generator.gumbel(size=self.passages)), self.documents - 1)
            for _ in range(count)
        ]
        return names[np.array([row[: self.documents] for row in rows], dtype=np.int64).reshape(count, self.documents)]

    def texts(self, tokenizer: PromptTokenizer) -> list[str]:
        """The text of each passage. Raises `UsageError` where the vocabulary has no words to make them of."""
        words = words_of(tokenizer)
        count = self.tokens - len(tokenizer.passage("", self.tokens).ids)
        texts = [" ".join(random.Random(number).choices(words, k=count)) for number in range(self.passages)]
        found = {len(tokens.ids) for tokens in tokenizer.passages(texts[:100], 2 * self.tokens)}
        if found != {self.tokens}:
            raise UsageError(
                f"passages of {self.tokens} tokens came out with {sorted(found)}; give the checkpoint the bundled "
                "model's tokenizer: --tokenizer kalm_cache/bundled/tiny"
            )
        return texts


def words_of(tokenizer: PromptTokenizer) -> list[str]:
    """Lower-case words of three letters and more that are one token each."""
    vocabulary = sorted(token.lstrip("▁Ġ") for token in tokenizer.tokenizer.get_vocab())
    return [word for word in vocabulary if len(word) > 2 and word.isascii() and word.isalpha() and word.islower()] or [
        "none"
    ]


def query(words: list[str], number: int) -> str:
    """What a request asks."""
    return " ".join(random.Random(f"query {number}").choices(words, k=QUERY_WORDS))
