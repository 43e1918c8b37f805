"""The scores of pairs, in the order asked for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from kalm_cache.errors import DamagedRecordError
from kalm_cache.scoring.state_reader import DamagedPassage
from query_service.middleware.metrics import Source

Origin = Literal["hit", "encoded"]


@dataclass(frozen=True, slots=True)
class Score:
    """One pair's margin, where its passage's states came from, and whether the passage was cut."""

    margin: float
    source: Source
    truncated: bool

    @property
    def cache(self) -> Origin:
        """Whether the states were there, or this request had them encoded."""
        return "encoded" if self.source == "encoded" else "hit"


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores in the order asked for, and what they cost in real tokens (a prompt counts for each of its pairs).

    A score is `None` where the stored passage is damaged, missing and skipped, or of a shard that nobody serves;
    `damaged` and `missing` name the first two.
    """

    scores: list[Score | None]
    prompt_tokens: int
    passage_tokens: int
    query_truncated: bool
    damaged: list[DamagedPassage]
    missing: list[str]

    @property
    def by_position(self) -> dict[int, Score]:
        """The scores of the pairs that have one."""
        return {i: score for i, score in enumerate(self.scores) if score is not None}

    @property
    def cache_hits(self) -> int:
        """How many pairs had their passage's states already."""
        return sum(score.cache == "hit" for score in self.by_position.values())

    @property
    def sources(self) -> dict[Source, int]:
        """How many pairs had their passage's states from where."""
        return dict(Counter(score.source for score in self.by_position.values()))

    @property
    def truncated(self) -> list[int]:
        """Positions of passages that were cut."""
        return [i for i, score in self.by_position.items() if score.truncated]

    def require_undamaged(self) -> None:
        """Raise `DamagedRecordError` if a passage is damaged: for answers that must not leave one out."""
        if self.damaged:
            raise DamagedRecordError(self.damaged[0].problem)
