"""Margins -> answers: the values that searches return, and their order. Knows nothing of stores or models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kalm_cache.metadata import Value


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One passage of an answer. Ranks count from 1; the first-stage fields are `None` when ids were given.

    `score` and `margin` are the reranker's alone, also where the order is by interpolated scores. `probability`: how
    probable it is that the passage is relevant, by the index's calibration; `None` where there is none. `metadata`: of
    the fields that were asked for, those that the passage has; `None` where none was.
    """

    doc_id: str
    score: float
    margin: float
    rank: int
    first_stage_rank: int | None
    first_stage_score: float | None
    text: str | None
    probability: float | None = None
    metadata: Mapping[str, Value] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Results, best first, and where the milliseconds went: `first_stage, read, decode, total`.

    `damaged` names the passages that are not in it as they were stored: their records, and so their scores, are
    missing (they are in no result), or only their texts (then the result's `text` is `None`).
    """

    query: str
    query_truncated: bool
    results: list[SearchResult]
    timings_ms: dict[str, float]
    damaged: list[str] = field(default_factory=list)


def interpolate(margins: Sequence[float], z_scores: Sequence[float], weight: float) -> list[float]:
    """Score interpolation: margin + weight · z-score of the first stage, by which candidates are then ordered.

    Args:
        margins: of the candidates that were scored.
        z_scores: the first stage's of the same candidates, over all of the query's.
        weight: logits for each standard deviation of the first stage; 0 = the margins alone.

    Source: interpolation of first-stage and reranking scores, as in Wang, Zhuang and Zuccon, "BERT-based Dense
    Retrievers Require Interpolation with BM25 for Effective Passage Retrieval", ICTIR 2021.
    """
    return [margin + weight * score for margin, score in zip(margins, z_scores, strict=True)]


def best_first(margins: Sequence[float], top_n: int | None) -> list[int]:
    """Positions by falling margin, `top_n` of them (`None` = all). Equal margins keep their order."""
    return sorted(range(len(margins)), key=lambda i: -margins[i])[:top_n]
