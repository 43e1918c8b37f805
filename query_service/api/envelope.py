"""What all answers to pairs have: score values, token usage, meta. Of requests it knows the options alone."""

from __future__ import annotations

from kalm_cache.calibration import FittedCurve
from kalm_cache.scoring.query_side import score_of
from query_service.answering.context import AnswerContext
from query_service.answering.scores import Score, Scores
from query_service.api.requests import PairOptions
from query_service.api.responses import Meta, Usage


def value_of(score: Score, request: PairOptions) -> float:
    """The number that a result carries as its score: P(yes), or the margin where raw scores are wanted."""
    return score.margin if request.wants_margins else score_of(score.margin)


def margin_of(score: Score, request: PairOptions) -> float | None:
    """The margin, where the request asks for it."""
    return score.margin if request.return_margin else None


def curve_of(request: PairOptions, context: AnswerContext) -> FittedCurve | None:
    """The calibration at the request's chunk size, if there is one."""
    calibration = context.model.calibration
    return None if calibration is None else calibration.find(request.chunk_size or context.model.chunk_size)


def probability_of(score: Score, curve: FittedCurve | None) -> float | None:
    """How probable it is that the passage is relevant; `None` without a calibration."""
    return None if curve is None else curve.probability(score.margin)


def usage_of(scores: Scores) -> Usage:
    """Real tokens, after all cuts."""
    total = scores.prompt_tokens + scores.passage_tokens
    return Usage(prompt_tokens=total, passage_tokens=scores.passage_tokens, total_tokens=total)


def meta_of(scores: Scores, context: AnswerContext) -> Meta:
    """What made the answer, and what it lacks or did not use."""
    return Meta(
        index_version=context.version,
        query_truncated=scores.query_truncated,
        truncated=scores.truncated,
        missing=scores.missing,
        damaged=[record.doc_id for record in scores.damaged],
        unused_fields=context.notes.unused_fields,
        cache_sources={str(source): count for source, count in scores.sources.items()},
        timings_ms=context.notes.finished(),
        partial=True if context.notes.missing_shards else None,
        missing_shards=context.notes.missing_shards or None,
    )
