"""`POST /explain`: which parts of a stored passage a query's tokens attended to. Knows nothing of routes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kalm_cache.errors import UnknownIdError
from kalm_cache.scoring.query_side import score_of
from query_service.answering.context import AnswerContext
from query_service.api.body.limits import DocId, Name, Text, exactly_one
from query_service.api.request_values import prompt_of
from query_service.api.requests import ChunkSize, Filter, TimeoutMs


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
    filter: Filter | None = Field(None, description="what a passage must match: 404 for one that does not")
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


async def answer_explain(request: ExplainRequest, context: AnswerContext) -> ExplainResponse:
    """Decode one pair, and say where it looked. Raises as `AnswerContext.explain` and `AnswerContext.describe`."""
    if request.filter is not None:
        found = await context.describe([request.passage_id], request.filter, ())
        if found.matches != [True]:
            raise UnknownIdError([request.passage_id])
    prompt = prompt_of(request.query, request.instruction, context.settings)
    explanation = await context.explain(prompt, request.passage_id, request.chunk_size)
    return ExplainResponse(
        doc_id=request.passage_id,
        id=request.id,
        index_version=context.version,
        score=score_of(explanation.margin),
        **asdict(explanation),
    )
