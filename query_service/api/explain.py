"""`POST /explain`: which parts of a stored passage a query's tokens attended to. Knows nothing of routes.

One pair, decoded once more in plain torch: `compute_explanation` runs it off the event loop, between batches.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.scoring.attribution import attribute
from kalm_cache.scoring.query_side import score_of
from kalm_cache.settings import Settings
from query_service.api.body.limits import DocId, Name, Text, exactly_one
from query_service.api.request_values import prompt_of
from query_service.api.requests import ChunkSize, TimeoutMs
from query_service.engine.request_context import RequestContext


class ExplainRequest(BaseModel):
    """One query and one stored passage."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"query": "Who discovered penicillin?", "doc_id": "d1"}]}
    )
    query: Text
    doc_id: DocId | None = Field(None, description="of a stored passage whose text the index keeps")
    id: DocId | None = Field(None, description="another name of `doc_id`, then answered as both")
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    timeout_ms: TimeoutMs | None = None
    model: Name | None = Field(None, description="one of /v1/models, or left out")

    @model_validator(mode="after")
    def _one_passage(self) -> Self:
        exactly_one(doc_id=self.doc_id, id=self.id)
        return self

    @property
    def passage_id(self) -> str:
        """The passage's stored id."""
        return str(self.id if self.doc_id is None else self.doc_id)

    @property
    def all_queries(self) -> list[str]:
        """The one query."""
        return [self.query]


class AttendedChunk(BaseModel):
    """A piece of the passage's text, characters `start … end`, and its share of the attention.

    Characters are Unicode code points, counted from 0; `end` is not part of it. `tokens`: how many it was pooled from.
    """

    start: int
    end: int
    weight: float
    tokens: int


class ExplainResponse(BaseModel):
    """How a query's tokens attended to a passage; the weights sum to 1. `truncated`: its end was cut, and has none."""

    doc_id: str
    id: str | None = None
    index_version: str
    margin: float
    score: float
    chunk_size: int
    query_truncated: bool
    truncated: bool
    text: str
    chunks: list[AttendedChunk]


async def compute_explanation(request: ExplainRequest, context: RequestContext) -> ExplainResponse:
    """The answer to /explain, computed between two batches. Raises as `answer_explain`."""
    return await context.compute("decode", lambda: answer_explain(request, context.index, context.settings))


def answer_explain(request: ExplainRequest, index: PassageIndex, settings: Settings) -> ExplainResponse:
    """Decode one pair, and say where it looked.

    Raises:
        UnknownIdError: the index does not hold the passage.
        DamagedRecordError: its states or its text are damaged.
        UsageError: the index keeps no texts, or the chunk size is no multiple of the stored one.
    """
    doc_id, chunk_size = request.passage_id, request.chunk_size or index.chunk_size
    [passage] = index.pooled([doc_id], chunk_size=chunk_size)
    text = _text(doc_id, index)
    attribution = attribute(
        index.query_side,
        prompt_of(request.query, request.instruction, settings),
        text,
        passage,
        chunk_size=chunk_size,
        max_length=index.generation.manifest.fingerprint.max_length,
    )
    return ExplainResponse(
        doc_id=doc_id,
        id=request.id,
        index_version=index.generation.name,
        margin=attribution.margin,
        score=score_of(attribution.margin),
        chunk_size=chunk_size,
        query_truncated=attribution.query_truncated,
        truncated=passage.truncated,
        text=text,
        chunks=[
            AttendedChunk(start=chunk.start, end=chunk.end, weight=weight, tokens=chunk.tokens)
            for chunk, weight in zip(attribution.chunks, attribution.weights, strict=True)
        ],
    )


def _text(doc_id: str, index: PassageIndex) -> str:
    [text] = index.find_texts([doc_id])
    if isinstance(text, DamagedRecordError):
        raise text
    if text is None:
        raise UsageError(
            "the index keeps no texts, so there is nothing to show attention on; index again without --no-text"
        )
    return text
