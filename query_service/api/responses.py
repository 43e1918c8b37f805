"""Response bodies. Knows nothing of models, indexes or how answers are made."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from query_service.api.requests import ItemId

_Document = TypeVar("_Document")
_Result = TypeVar("_Result")


class Usage(BaseModel):
    """Real tokens, without padding: the prompt counts once for each passage, since it is decoded for each."""

    prompt_tokens: int
    passage_tokens: int
    total_tokens: int


class Meta(BaseModel):
    """What made the answer, where its milliseconds went, and what is not in it as it was asked for.

    `truncated`: positions of passages that were cut; `missing` and `damaged`: ids that have no result, as the index
    does not hold them, or holds them damaged.
    """

    index_version: str
    query_truncated: bool
    truncated: list[int] = []
    missing: list[str] = []
    damaged: list[str] = []
    timings_ms: dict[str, float]


class DocumentText(BaseModel):
    """A document, handed back."""

    text: str


class _Ranked(BaseModel, Generic[_Document]):
    index: int
    relevance_score: float
    score: float
    id: ItemId | None = None
    margin: float | None = None
    cache: Literal["hit", "encoded"]
    document: _Document | None = None


class _Reranked(BaseModel, Generic[_Result]):
    id: str
    object: Literal["rerank"] = "rerank"
    created: int
    model: str
    results: list[_Result]
    usage: Usage
    meta: Meta


class RerankResult(_Ranked[DocumentText]):
    """One passage; `index` is its position in the request, `score` the same number as `relevance_score`."""


class RerankResponse(_Reranked[RerankResult]):
    """The envelope that the clients of all rerank services read, results best first."""


class InfinityResult(_Ranked[str]):
    """As `RerankResult`; the document is a plain string."""


class InfinityResponse(_Reranked[InfinityResult]):
    """As `RerankResponse`, for clients of Infinity."""


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
    meta: Meta


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
    meta: Meta


class SearchHit(BaseModel):
    """One passage of an answer; ranks count from 1, `text` is null where it is not kept or not wanted."""

    doc_id: str
    score: float
    margin: float
    rank: int
    first_stage_rank: int | None
    first_stage_score: float | None
    text: str | None


class Plan(BaseModel):
    """What a time budget allowed: so many candidates, at this ratio; `reduced` = less than was asked for."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


class SearchResponse(BaseModel):
    """Results, best first, and where the milliseconds went; `damaged` ids have no result, or no text.

    `plan` is null where no budget was given.
    """

    query: str
    query_truncated: bool
    results: list[SearchHit]
    timings_ms: dict[str, float]
    index_version: str
    damaged: list[str] = []
    plan: Plan | None = None


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
    `reload_failure` says why the newest generation is not the one that is served; null where it is.
    """

    status: Literal["ok"] = "ok"
    index_version: str
    model: str
    passages: int
    damaged_reads: int = 0
    reload_failure: str | None = None
    prefix_cache: PrefixCache | None = None


class Ready(BaseModel):
    """Requests are answered; 503 in its place while the service warms up or stops."""

    status: Literal["ready"] = "ready"
    index_version: str


class Reloaded(BaseModel):
    """What is served now, and whether that is another generation than before."""

    index_version: str
    swapped: bool


class Model(BaseModel):
    """One name that `model` may have."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["kalm-cache"] = "kalm-cache"
    root: str
    parent: None = None
    max_model_len: int


class Models(BaseModel):
    """The names that `model` may have."""

    object: Literal["list"] = "list"
    data: list[Model]


class Info(BaseModel):
    """What this service is, holds and allows; lengths in tokens. Names as other rerank services have them."""

    version: str
    model_id: str
    model_sha: str
    model_dtype: str
    model_type: dict[str, Any]
    device: str
    index_version: str
    passages: int
    codec: str
    chunk_size: int
    first_stage: list[str]
    encodes_documents: bool
    max_input_length: int
    max_query_length: int
    max_query_chars: int
    max_documents: int
    max_client_batch_size: int
    max_body_bytes: int
    timeout_ms: int
    queue_limit: int
    max_concurrent_requests: int
    workers: int


class Error(BaseModel):
    """What went wrong; `ids` lists the unknown ones of a 404."""

    type: str
    message: str
    ids: list[str] | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not 200; `detail` is the message once more, where other clients look for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"error": {"type": "UsageError", "message": "chunk size 3 was asked for, but …"}, "detail": "…"}
            ]
        }
    )
    error: Error
    detail: str
