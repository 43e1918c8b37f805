"""Negatives for training: passages that the first stage ranks near a query, and that are probably not relevant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.finetuning.data.example import Example, Item
from kalm_cache.finetuning.options import MiningOptions

if TYPE_CHECKING:
    from kalm_cache.first_stage import Mode
    from kalm_cache.index.passage_index import PassageIndex

SPARE = 2  # so many times the negatives wanted are scored, as some will be left out


class Scorer(Protocol):
    """Scores passages for a query: the higher, the more relevant."""

    def __call__(self, query: str, instruction: str | None, items: Sequence[Item]) -> list[float]:
        """The score of each item."""


@dataclass(slots=True)
class Mined:
    """How much was mined: negatives taken, and candidates left out as false ones."""

    queries: int = 0
    taken: int = 0
    false: int = 0


@dataclass(frozen=True, slots=True)
class Miner:
    """Adds negatives of one index to examples. `keep_scores`: the scorer is a teacher, whose scores are learnt from."""

    index: PassageIndex
    options: MiningOptions
    scorer: Scorer
    seed: int
    keep_scores: bool = False

    def mine(self, examples: Sequence[Example], counts: Mined, advance: Callable[[int], None]) -> Iterator[Example]:
        """Each example with its negatives, given ones first.

        Raises:
            UsageError: the first stage has no such mode.
        """
        for number, example in enumerate(examples):
            yield self._mined(example, np.random.default_rng([self.seed, 0, number]), counts)
            counts.queries += 1
            advance(1)

    def _mined(self, example: Example, rng: np.random.Generator, counts: Mined) -> Example:
        wanted = max(self.options.negatives - len(example.negatives), 0)
        known = {item.value for item in example.items}
        pool = [item for item in self._ranked(example.query, rng) if item.value not in known] if wanted else []
        candidates = [*example.items, *pool[: SPARE * wanted]]
        needs_scores = self.keep_scores or (self.options.false_above is not None and pool)
        scores = self.scorer(example.query, example.instruction, candidates) if needs_scores else []
        scored = dict(zip(candidates, scores, strict=True)) if scores else {}
        taken: list[Item] = []
        for item in pool[: SPARE * wanted]:
            if scored and self._is_false(scored[item], [scored[positive] for positive in example.positives]):
                counts.false += 1
            elif len(taken) < wanted:
                taken.append(item)
        known.update(item.value for item in taken)
        drawn = [item for item in self._random(rng) if item.value not in known]
        counts.taken += len(taken) + len(drawn)
        mined = replace(example, negatives=(*example.negatives, *taken, *drawn))
        return (
            self._with_scores(mined, scored)
            if self.keep_scores
            else replace(
                mined,
                positive_scores=example.positive_scores if not (taken or drawn) else (),
                negative_scores=example.negative_scores if not (taken or drawn) else (),
            )
        )

    def _is_false(self, score: float, positives: Sequence[float]) -> bool:
        above = self.options.false_above
        return above is not None and score > max(positives) + above

    def _with_scores(self, example: Example, scored: dict[Item, float]) -> Example:
        missing = [item for item in example.items if item not in scored]
        scored |= dict(zip(missing, self.scorer(example.query, example.instruction, missing), strict=True))
        return replace(
            example,
            positive_scores=tuple(scored[item] for item in example.positives),
            negative_scores=tuple(scored[item] for item in example.negatives),
        )

    def _ranked(self, query: str, rng: np.random.Generator) -> list[Item]:
        """The passages at the ranks of the range, in an order drawn at random."""
        options = self.options
        found = self.index.find(query, options.last_rank, cast("Mode | None", options.first_stage))
        doc_ids = found.doc_ids[options.first_rank - 1 :]
        return [Item(doc_ids[i], is_id=True) for i in rng.permutation(len(doc_ids)).tolist()]

    def _random(self, rng: np.random.Generator) -> list[Item]:
        """Passages of the whole corpus. Those that are deleted or damaged are not replaced."""
        ordinals = rng.integers(0, self.index.store.next_ordinal(), self.options.random)
        doc_ids = [each for each in self.index.store.find_doc_ids(ordinals.tolist()) if isinstance(each, str)]
        metas = self.index.store.metas(doc_ids)
        there = [
            doc_id
            for doc_id, meta in zip(doc_ids, metas, strict=True)
            if meta is not None and not isinstance(meta, DamagedRecordError)
        ]
        return [Item(doc_id, is_id=True) for doc_id in dict.fromkeys(there)]


def parse_range(text: str) -> tuple[int, int]:
    """`2-200` → (2, 200). Raises `UsageError`."""
    first, dash, last = text.partition("-")
    if not dash or not first.strip().isdecimal() or not last.strip().isdecimal():
        raise UsageError(f"--range is {text!r}; expected FIRST-LAST, as 2-200")
    return int(first), int(last)
