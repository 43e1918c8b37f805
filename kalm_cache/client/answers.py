"""Response bodies -> values. Knows nothing of requests or sockets.

Answers are those of `PassageIndex`, with what a service adds to them. Fields that a service does not send have their
defaults, and fields that are not known here are ignored: clients understand services of other releases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kalm_cache.scoring.ranking import Answer, SearchResult


@dataclass(frozen=True, slots=True)
class ServedResult(SearchResult):
    """One passage of a service's answer. A raw document without an id has its position as `doc_id`.

    `index` is the passage's position in the request (`None` after a search); `cache` says whether its states were
    stored (`hit`) or computed for this request (`encoded`), where the service says so.
    """

    index: int | None = None
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """What a time budget allowed: so many candidates, at this pooling ratio; `reduced` = less than was asked for."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


@dataclass(frozen=True, slots=True)
class ServedAnswer(Answer):
    """A service's answer: which generation gave it, and what is not in it as it was asked for.

    `missing`: ids that the index does not hold (under `on_missing="skip"`); `truncated`: positions in the request of
    documents that were cut; `plan`: what `budget_ms` led to.
    """

    results: list[ServedResult]  # type: ignore[assignment]  # narrower, and never written to
    index_version: str = ""
    missing: list[str] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    plan: ServedPlan | None = None


@dataclass(frozen=True, slots=True)
class PairScore:
    """One pair's judgement: `score` = P(yes), `margin` = yes_logit − no_logit, `id` = the client's name of the pair."""

    score: float
    margin: float
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class AttendedChunk:
    """Characters `start … end` of a passage's text, pooled from so many `tokens`, and their share of the attention."""

    start: int
    end: int
    weight: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which parts of a stored passage a query's tokens attended to; the weights of all chunks sum to 1.

    `truncated`: the text's end was cut when it was indexed, and has no weight.
    """

    id: str
    score: float
    margin: float
    chunk_size: int
    query_truncated: bool
    truncated: bool
    text: str
    chunks: list[AttendedChunk]
    index_version: str


def read_search(body: Mapping[str, Any]) -> ServedAnswer:
    """What `POST /search` answered. Raises `KeyError`, `TypeError` or `ValueError` where it is no such body."""
    plan = body.get("plan")
    return ServedAnswer(
        query=str(body["query"]),
        query_truncated=bool(body["query_truncated"]),
        results=[_searched(result) for result in body["results"]],
        timings_ms=dict(body["timings_ms"]),
        damaged=list(body.get("damaged") or ()),
        index_version=str(body["index_version"]),
        plan=None if plan is None else ServedPlan(**{name: plan[name] for name in ServedPlan.__slots__}),
    )


def read_rerank(body: Mapping[str, Any], query: str, texts: Sequence[str | None] | None = None) -> ServedAnswer:
    """What `POST /rerank` answered, with margins asked for. `texts`: those of the request, which are not sent back."""
    meta = body.get("meta") or {}
    return ServedAnswer(
        query=query,
        query_truncated=bool(meta.get("query_truncated", False)),
        results=[_ranked(rank, result, texts) for rank, result in enumerate(body["results"], 1)],
        timings_ms=dict(meta.get("timings_ms") or {}),
        damaged=list(meta.get("damaged") or ()),
        index_version=str(meta.get("index_version", "")),
        missing=list(meta.get("missing") or ()),
        truncated=list(meta.get("truncated") or ()),
    )


def read_scores(body: Mapping[str, Any]) -> list[PairScore]:
    """What `POST /score` answered to `pairs`, in their order."""
    return [PairScore(float(one["score"]), float(one["margin"]), one.get("id")) for one in body["results"]]


def read_explanation(body: Mapping[str, Any]) -> Explanation:
    """What `POST /explain` answered."""
    chunks = [AttendedChunk(**{name: one[name] for name in AttendedChunk.__slots__}) for one in body["chunks"]]
    own = {name: body[name] for name in Explanation.__slots__ if name != "chunks"}
    return Explanation(**own, chunks=chunks)


def read_models(body: Mapping[str, Any]) -> list[str]:
    """The names of `GET /v1/models`."""
    return [str(model["id"]) for model in body["data"]]


def _searched(result: Mapping[str, Any]) -> ServedResult:
    return ServedResult(
        doc_id=str(result["doc_id"]),
        score=float(result["score"]),
        margin=float(result["margin"]),
        rank=int(result["rank"]),
        first_stage_rank=result.get("first_stage_rank"),
        first_stage_score=result.get("first_stage_score"),
        text=result.get("text"),
    )


def _ranked(rank: int, result: Mapping[str, Any], texts: Sequence[str | None] | None) -> ServedResult:
    index, name = int(result["index"]), result.get("doc_id", result.get("id"))
    document = result.get("document")
    text = document["text"] if document else texts[index] if texts is not None else None
    return ServedResult(
        doc_id=str(index if name is None else name),
        score=float(result["score"]),
        margin=float(result["margin"]),
        rank=rank,
        first_stage_rank=None,
        first_stage_score=None,
        text=text,
        index=index,
        cache=result.get("cache"),
    )
