"""Response bodies -> values. Knows nothing of requests or sockets.

Answers are those of `PassageIndex`, with what a service adds to them. Fields that a service does not send have their
defaults, and fields that are not known here are ignored: clients understand services of other releases. `doc_id` and
`label` were `id` in older ones, and are read from it too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kalm_cache.scoring.ranking import Answer, SearchResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedResult(SearchResult):
    """One passage of a service's answer. A document that was sent without an id has its position as `doc_id`.

    `index` is the passage's position in the request (`None` after a search); `cache` is `hit` where its states were
    stored and `encoded` where they were computed for this request (`None`: the service does not tell).
    """

    index: int | None = None
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """What a time budget allowed: `k` candidates at pooling ratio `chunk_size`; `reduced`: less than requested."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


@dataclass(frozen=True, slots=True)
class ServedAnswer(Answer):
    """A service's answer: the index's generation (`index_version`), and where it differs from what was requested.

    `missing`: ids that the index does not hold (under `on_missing="skip"`); `truncated`: positions in the request of
    documents that were cut; `unused_fields`: what was sent and not used; `plan`: what `budget_ms` led to.
    """

    results: list[ServedResult]  # type: ignore[assignment]  # narrower, and never written to
    index_version: str = ""
    missing: list[str] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    plan: ServedPlan | None = None
    unused_fields: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair: `score` = P(yes), `margin` = yes_logit − no_logit, `label` = the caller's own tag, sent along.

    `probability` that it is relevant, where the index is calibrated.
    """

    score: float
    margin: float
    label: str | int | None = None
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class AttendedChunk:
    """Characters `start … end` of a passage's text, how many `tokens` they are, and their share of the attention."""

    start: int
    end: int
    weight: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which parts of a stored passage a query's tokens attended to; the weights of all chunks sum to 1.

    `truncated`: the text's end was cut when it was indexed, and has no weight.
    """

    doc_id: str
    score: float
    margin: float
    chunk_size: int
    query_truncated: bool
    truncated: bool
    text: str
    chunks: list[AttendedChunk]
    index_version: str


def read_search(body: Mapping[str, Any]) -> ServedAnswer:
    """The body of `POST /search`. Raises `KeyError`, `TypeError` or `ValueError` where it is none."""
    plan = body.get("plan")
    return ServedAnswer(
        query=str(body["query"]),
        query_truncated=bool(body["query_truncated"]),
        results=[_search_result(result) for result in body["results"]],
        timings_ms=dict(body["timings_ms"]),
        damaged=list(body.get("damaged") or ()),
        index_version=str(body["index_version"]),
        plan=None if plan is None else ServedPlan(**{name: plan[name] for name in ServedPlan.__slots__}),
    )


def read_rerank(body: Mapping[str, Any], query: str, texts: Sequence[str | None] | None = None) -> ServedAnswer:
    """The body of `POST /rerank` with margins. `texts`: those of the request, which are not sent back."""
    meta = body.get("meta") or {}
    return ServedAnswer(
        query=query,
        query_truncated=bool(meta.get("query_truncated", False)),
        results=[_rerank_result(rank, result, texts) for rank, result in enumerate(body["results"], 1)],
        timings_ms=dict(meta.get("timings_ms") or {}),
        damaged=list(meta.get("damaged") or ()),
        index_version=str(meta.get("index_version", "")),
        missing=list(meta.get("missing") or ()),
        truncated=list(meta.get("truncated") or ()),
        unused_fields=list(meta.get("unused_fields") or ()),
    )


def read_scores(body: Mapping[str, Any]) -> list[PairScore]:
    """The body of `POST /score` for `pairs`, in their order. Logs a warning where fields of documents were not used."""
    unused = (body.get("meta") or {}).get("unused_fields")
    if unused:
        logger.warning("fields that are no part of a passage were not used: %s", ", ".join(map(str, unused)))
    return [
        PairScore(float(pair["score"]), float(pair["margin"]), _named(pair, "label"), pair.get("probability"))
        for pair in body["results"]
    ]


def read_explanation(body: Mapping[str, Any]) -> Explanation:
    """The body of `POST /explain`."""
    chunks = [AttendedChunk(**{name: chunk[name] for name in AttendedChunk.__slots__}) for chunk in body["chunks"]]
    fields = {name: body[name] for name in Explanation.__slots__ if name not in ("doc_id", "chunks")}
    return Explanation(doc_id=str(body.get("doc_id") or body["id"]), chunks=chunks, **fields)


def read_models(body: Mapping[str, Any]) -> list[str]:
    """The names of `GET /v1/models`."""
    return [str(model["id"]) for model in body["data"]]


def _search_result(result: Mapping[str, Any]) -> ServedResult:
    return ServedResult(
        doc_id=str(result["doc_id"]),
        score=float(result["score"]),
        margin=float(result["margin"]),
        rank=int(result["rank"]),
        first_stage_rank=result.get("first_stage_rank"),
        first_stage_score=result.get("first_stage_score"),
        text=result.get("text"),
        probability=result.get("probability"),
        metadata=result.get("metadata"),
    )


def _rerank_result(rank: int, result: Mapping[str, Any], texts: Sequence[str | None] | None) -> ServedResult:
    index, doc_id = int(result["index"]), _named(result, "doc_id")
    document = result.get("document")
    text = document["text"] if document else texts[index] if texts is not None else None
    return ServedResult(
        doc_id=str(index if doc_id is None else doc_id),
        score=float(result["score"]),
        margin=float(result["margin"]),
        rank=rank,
        first_stage_rank=None,
        first_stage_score=None,
        text=text,
        probability=result.get("probability"),
        metadata=result.get("metadata"),
        index=index,
        cache=result.get("cache"),
    )


def _named(fields: Mapping[str, Any], name: str) -> Any:
    """The field of that name; an older service calls it `id`."""
    value = fields.get(name)
    return fields.get("id") if value is None else value
