"""Prompt-passage pairs → scores, whether a passage is stored or comes as text. Knows nothing of HTTP.

Stored passages take the steps of `kalm_cache.scoring.pipeline`, texts are encoded; all pairs are decoded together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.pooling import PooledPassage
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.state_reader import DamagedPassage
from query_service.engine.gathering import (
    AnyPassage,
    Gathered,
    ScoringOptions,
    find_passages,
    gather,
    tokenize_prompts,
)
from query_service.engine.request_context import RequestContext
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

    A score is `None` where the stored passage is damaged, or missing and skipped; `damaged` and `missing` name these.
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


async def score_pairs(
    context: RequestContext, prompts: Sequence[Prompt], passages: Sequence[AnyPassage], options: ScoringOptions
) -> Scores:
    """The score of each (prompt, passage) pair. Equal prompts are tokenised once, equal passages read once.

    Raises:
        EncoderOffError: a raw passage, and no encoder.
        UnknownIdError, NoIndexError: ids that the index does not hold, where that is an error.
        UsageError: a chunk size that is no multiple of the stored one; a cut, where none is allowed.
    """
    side = context.model.query_side
    tokens = await tokenize_prompts(context, prompts)
    gathered = Gathered()
    await context.read("read", lambda: find_passages(context, passages, options, gathered))
    async with context.encoding() if gathered.encodes else nullcontext(), context.holding_states():
        await gather(context, list(tokens.values()), options, gathered)
        _count_cuts(context, tokens.values(), gathered.ready.values(), options)
        pairs = [
            (tokens[prompt], gathered.ready[passage])
            for prompt, passage in zip(prompts, passages, strict=True)
            if passage in gathered.ready
        ]
        margins = await context.margins(side, [prompt for prompt, _ in pairs], [ready.states for _, ready in pairs])
    scores = Scores(
        _scores(passages, gathered, margins),
        prompt_tokens=sum(len(prompt.ids) for prompt, _ in pairs),
        passage_tokens=sum(ready.tokens for _, ready in pairs),
        query_truncated=any(prompt.truncated for prompt in tokens.values()),
        damaged=gathered.damaged,
        missing=gathered.missing,
    )
    context.truncated, context.cache_hits = scores.truncated, scores.cache_hits
    return scores


def _scores(passages: Sequence[AnyPassage], gathered: Gathered, margins: Sequence[float]) -> list[Score | None]:
    """Margins of the pairs that are ready → a score or `None` for each pair."""
    rest = iter(margins)
    return [
        Score(next(rest), gathered.sources[passage], gathered.ready[passage].truncated)
        if passage in gathered.ready
        else None
        for passage in passages
    ]


def _count_cuts(
    context: RequestContext,
    prompts: Collection[PromptTokens],
    passages: Collection[PooledPassage | CachedPrefix],
    options: ScoringOptions,
) -> None:
    counts = context.counts
    counts.queries_cut += sum(prompt.truncated for prompt in prompts)
    counts.documents_cut += sum(passage.truncated for passage in passages)
    if options.truncate:
        return
    if counts.queries_cut:
        raise UsageError("the query has more tokens than count, and `truncate` is false; shorten it, or allow the cut")
    if counts.documents_cut:
        raise UsageError(
            f"{counts.documents_cut} passages have more tokens than count, and `truncate` is false; allow the cut"
        )
