"""Response bodies. Knows nothing of models, indexes or how answers are made."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from query_service.requests import ItemId


class Usage(BaseModel):
    """Real tokens, without padding: the prompt counts once for each passage, since it is decoded for each."""

    prompt_tokens: int
    passage_tokens: int
    total_tokens: int


class Meta(BaseModel):
    """What made the answer, and the ids that are not in it as their records are damaged."""

    index_version: str
    query_truncated: bool
    damaged: list[str] = []


class DocumentText(BaseModel):
    """A document, handed back."""

    text: str


class RerankResult(BaseModel):
    """One passage; `index` is its position in the request, `score` the same number as `relevance_score`."""

    index: int
    relevance_score: float
    score: float
    id: ItemId | None = None
    margin: float | None = None
    document: DocumentText | None = None


class RerankResponse(BaseModel):
    """The envelope that the clients of all rerank services read, results best first."""

    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta


class TextResult(BaseModel):
    """One element of the bare array that answers `texts`."""

    index: int
    score: float
    id: ItemId | None = None
    margin: float | None = None
    text: str | None = None


class PairResult(BaseModel):
    """One pair's score, under the pair's own id."""

    index: int
    id: ItemId | None = None
    score: float
    margin: float | None = None


class PairsResponse(BaseModel):
    """The answer to `pairs`, in their order."""

    object: Literal["score"] = "score"
    model: str
    results: list[PairResult]
    usage: Usage


class ScoreData(BaseModel):
    """One score of the answer to two columns."""

    index: int
    object: Literal["score"] = "score"
    score: float
    margin: float | None = None


class ScoreResponse(BaseModel):
    """The answer to two columns, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


class SearchHit(BaseModel):
    """One passage of an answer; ranks count from 1, `text` is null where it is not kept or not wanted."""

    doc_id: str
    score: float
    margin: float
    rank: int
    first_stage_rank: int | None
    first_stage_score: float | None
    text: str | None


class SearchResponse(BaseModel):
    """Results, best first, and where the milliseconds went; `damaged` ids have no result, or no text."""

    query: str
    query_truncated: bool
    results: list[SearchHit]
    timings_ms: dict[str, float]
    index_version: str
    damaged: list[str] = []


class PrefixCache(BaseModel):
    """The tier of passages kept under a prompt's prefix: counts since the start, and what is held."""

    hits: int
    misses: int
    evicted: int
    passages: int
    bytes: int
    capacity_bytes: int


class Health(BaseModel):
    """The service is alive, and what it serves; `prefix_cache` is null where there is none.

    `damaged_reads` counts passages that answers had to do without: above 0, run kalm-cache verify --repair.
    """

    status: Literal["ok"] = "ok"
    index_version: str
    model: str
    passages: int
    damaged_reads: int = 0
    prefix_cache: PrefixCache | None = None


class Error(BaseModel):
    """What went wrong; `ids` lists the unknown ones of a 404."""

    type: str
    message: str
    ids: list[str] | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not 200."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": {"type": "UsageError", "message": "chunk size 3 was asked for, but …"}}]
        }
    )
    error: Error
