"""`POST /explain`: which parts of a stored passage a query's tokens attended to. Knows nothing of routes.

One pair, decoded once more in plain torch: call it off the event loop, between batches.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from kalm_cache.errors import DamagedRecordError, UsageError
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.scoring.attribution import attribute
from kalm_cache.scoring.query_side import score_of
from kalm_cache.settings import Settings
from query_service.api.requests import ChunkSize, DocId, Text, TimeoutMs


class ExplainRequest(BaseModel):
    """One query and one stored passage."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "Who discovered penicillin?", "id": "d1"}]})
    query: Text
    id: DocId = Field(description="of a stored passage whose text the index keeps")
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    timeout_ms: TimeoutMs | None = None
    model: Text | None = Field(None, description="one of /v1/models, or left out")

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

    id: str
    index_version: str
    margin: float
    score: float
    chunk_size: int
    query_truncated: bool
    truncated: bool
    text: str
    chunks: list[AttendedChunk]


def answer_explain(request: ExplainRequest, index: PassageIndex, settings: Settings) -> ExplainResponse:
    """Decode one pair, and say where it looked.

    Raises:
        UnknownIdError: the index does not hold the passage.
        DamagedRecordError: its states or its text are damaged.
        UsageError: the index keeps no texts, or the chunk size is no multiple of the stored one.
    """
    chunk_size = request.chunk_size or index.chunk_size
    [passage] = index.pooled([request.id], chunk_size=chunk_size)
    found = attribute(
        index.query_side,
        request.query,
        text := _text(request.id, index),
        passage,
        chunk_size=chunk_size,
        max_length=index.generation.manifest.fingerprint.max_length,
        instruction=settings.instruction if request.instruction is None else request.instruction,
        system_instruction=settings.system_instruction,
    )
    return ExplainResponse(
        id=request.id,
        index_version=index.generation.name,
        margin=found.margin,
        score=score_of(found.margin),
        chunk_size=chunk_size,
        query_truncated=found.query_truncated,
        truncated=passage.truncated,
        text=text,
        chunks=[
            AttendedChunk(start=chunk.start, end=chunk.end, weight=weight, tokens=chunk.tokens)
            for chunk, weight in zip(found.chunks, found.weights, strict=True)
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
