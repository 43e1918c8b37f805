"""Response bodies of the answers. Knows nothing of models, indexes or how answers are made.

Names of things in requests and responses, by one rule: `doc_id` is the id under which a passage is stored, or may be
(a number stands for its digits, as in a corpus);
`label` is the client's own tag of a pair; `id` is what clients of other services send, and gets what they expect back.

| endpoint        | asked by                          | each result has                                              |
|-----------------|-----------------------------------|--------------------------------------------------------------|
| /search         | a query                           | `doc_id`                                                     |
| /rerank         | `ids`                             | `doc_id`                                                     |
|                 | documents or texts with `doc_id`  | `doc_id`                                                     |
|                 | documents or texts with `id`      | `id` as sent, and `doc_id`: the same as a string             |
|                 | plain strings                     | neither: `index` is the position in the request              |
| /score, `pairs` | `doc_id`, or a document with one  | `doc_id`                                                     |
|                 | `label`                           | `label`                                                      |
|                 | `id`                              | `label`, and `id` as sent                                    |
| /explain        | `doc_id`                          | `doc_id`                                                     |
|                 | `id`                              | `doc_id`, and `id` as sent                                   |
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from query_service.api.body.limits import ItemId

_Document = TypeVar("_Document")
_Result = TypeVar("_Result")


class Usage(BaseModel):
    """Real tokens after all cuts, without padding: a prompt counts once for each passage, as it is decoded for each.

    `prompt_tokens` and `total_tokens` are all of them, as other rerank services count; `passage_tokens` are a part.
    """

    prompt_tokens: int
    passage_tokens: int
    total_tokens: int


class ApiVersion(BaseModel):
    """The version of Cohere's API that a request was made in."""

    version: Literal["1", "2"]


class BilledUnits(BaseModel):
    """What Cohere would bill: a search unit for each hundred documents that were begun."""

    search_units: int


class Meta(BaseModel):
    """What made the answer, where its milliseconds went, and what is not in it as it was asked for.

    `truncated`: positions of passages that were cut; `missing` and `damaged`: ids that have no result, as the index
    does not hold them, or holds them damaged; `unused_fields`: what the request says and nobody heeded;
    `cache_sources`: how many passages' states came from where: `index_id` and `index_text` (the index, by id and by
    text), `text_cache`, `in_flight` (another request that encoded them), `encoded`. `partial`: passages of
    `missing_shards` have no result, as no service with these answers a router now; left out of whole answers.
    `api_version` and `billed_units` are for clients of Cohere.
    """

    index_version: str
    query_truncated: bool
    truncated: list[int] = []
    missing: list[str] = []
    damaged: list[str] = []
    unused_fields: list[str] = []
    cache_sources: dict[str, int] = {}
    timings_ms: dict[str, float]
    partial: bool | None = None
    missing_shards: list[int] | None = None
    api_version: ApiVersion | None = None
    billed_units: BilledUnits | None = None


class DocumentText(BaseModel):
    """A document, handed back."""

    text: str


class _Ranked(BaseModel, Generic[_Document]):
    index: int
    relevance_score: float
    score: float
    doc_id: ItemId | None = None
    id: ItemId | None = None
    margin: float | None = None
    probability: float | None = None
    cache: Literal["hit", "encoded"]
    document: _Document | None = None
    metadata: dict[str, Any] | None = None


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
    doc_id: ItemId | None = None
    id: ItemId | None = None
    margin: float | None = None
    probability: float | None = None
    text: str | None = None


class PairResult(BaseModel):
    """One pair's score; `label` and `id` are the client's."""

    index: int
    label: ItemId | None = None
    id: ItemId | None = None
    doc_id: ItemId | None = None
    score: float
    margin: float | None = None
    probability: float | None = None


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
    probability: float | None = None


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
    """One passage of an answer; ranks count from 1, `text` is null where the index has none, or it is not wanted.

    `probability` that it is relevant: null where the index is not calibrated at this chunk size. `metadata`: what the
    passage has of the `fields` that were asked for; null where none was.
    """

    doc_id: str
    score: float
    margin: float
    rank: int
    first_stage_rank: int | None
    first_stage_score: float | None
    text: str | None
    probability: float | None = None
    metadata: dict[str, Any] | None = None


class Plan(BaseModel):
    """What a time budget allowed: so many candidates, at this ratio; `reduced`: less than was asked for."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


class SearchResponse(BaseModel):
    """Results, best first, and where the milliseconds went; `damaged` ids have no result, or no text.

    `plan` is null where no budget was given. `partial` and `missing_shards`: as in `Meta`.
    """

    query: str
    query_truncated: bool
    results: list[SearchHit]
    timings_ms: dict[str, float]
    index_version: str
    damaged: list[str] = []
    plan: Plan | None = None
    partial: bool = False
    missing_shards: list[int] = []
