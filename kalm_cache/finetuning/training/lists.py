"""Which queries and passages a step takes: drawn from the step's number and the seed alone, so that a resumed run
takes the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kalm_cache.finetuning.data.example import Example
from kalm_cache.finetuning.options import TrainingOptions

POSITIVE_SHARE = 4  # at most one in so many passages of a list is relevant, if the query has others


@dataclass(frozen=True, slots=True)
class Step:
    """The chunk size and the lists of one step: examples with the passages that were drawn."""

    chunk_size: int
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a run; `chunk_sizes` are those that it draws from."""

    examples: Sequence[Example]
    chunk_sizes: Sequence[int]
    options: TrainingOptions

    @property
    def an_epoch(self) -> int:
        """Steps of one pass over the examples."""
        return math.ceil(len(self.examples) / self.options.queries)

    @property
    def count(self) -> int:
        """Steps of all epochs."""
        return max(1, round(self.an_epoch * self.options.epochs))

    def step(self, number: int) -> Step:
        """The step of that number, from 0."""
        epoch, place = divmod(number, self.an_epoch)
        order = np.random.default_rng([self.options.seed, 1, epoch]).permutation(len(self.examples))
        chosen = order[place * self.options.queries : (place + 1) * self.options.queries]
        rng = np.random.default_rng([self.options.seed, 2, number])
        chunk_size = int(rng.choice(np.array(self.chunk_sizes)))
        return Step(chunk_size, [draw(self.examples[i], self.options.passages, rng) for i in chosen.tolist()])


def draw(example: Example, count: int, rng: np.random.Generator) -> Example:
    """At most `count` of an example's passages: one relevant one at least, and others."""
    most = max(1, count // POSITIVE_SHARE, count - len(example.negatives))
    positives = _some(len(example.positives), most, rng)
    negatives = _some(len(example.negatives), count - len(positives), rng)
    return replace(
        example,
        positives=tuple(example.positives[i] for i in positives),
        negatives=tuple(example.negatives[i] for i in negatives),
        grades=tuple(example.grades[i] for i in positives) if example.grades else (),
        positive_scores=tuple(example.positive_scores[i] for i in positives) if example.positive_scores else (),
        negative_scores=tuple(example.negative_scores[i] for i in negatives) if example.negative_scores else (),
    )


def _some(there: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` different numbers below `there`, or all."""
    return sorted(rng.permutation(there)[:count].tolist())
