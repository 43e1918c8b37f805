"""What goes over the wire: request and response bodies. Knows nothing of models, indexes or how answers are made.

Unknown request fields are ignored, so that clients of other rerank services need no change.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from kalm_cache.first_stage import Mode

_T = TypeVar("_T")


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise PydanticCustomError(
            "lone_surrogate", "Half of a surrogate pair at character {position}: not valid Unicode", {"position": exc.start}
        ) from exc
    return text


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


Text = Annotated[str, AfterValidator(_encodable)]
DocId = Annotated[Text, Field(min_length=1)]
ItemId = Text | StrictInt
TopN = Annotated[int, Field(ge=0)]
ChunkSize = Annotated[int, Field(ge=1, description="pooling ratio: the stored one or a multiple of it")]


class Document(BaseModel):
    """A text that the index need not hold, with the client's own name for it."""

    text: Text
    id: ItemId | None = None


Documents = list[Text | Document]


class SearchRequest(BaseModel):
    """First stage, then cached rerank."""

    model_config = _example(query="Who discovered penicillin?", k=100, top_n=3)
    query: Text
    k: int = Field(100, ge=1, description="candidates that the first stage hands to the reranker")
    top_n: TopN | None = Field(10, description="results returned; null or 0 = all")
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    first_stage: Mode | None = Field(None, description="null = the best that the index has")
    return_documents: bool = True


class RerankRequest(BaseModel):
    """Passages to rank: stored ones by `ids`, or raw ones as `documents` or `texts`; exactly one of the three."""

    model_config = _example(query="Who discovered penicillin?", ids=["d1", "d2"], top_n=1)
    query: Text
    ids: list[DocId] | None = Field(None, description="ids of stored passages: no encoder runs")
    documents: Documents | None = Field(None, description="raw documents, encoded on the fly")
    texts: Documents | None = Field(None, description="as `documents`, answered by a bare array")
    top_n: TopN | None = Field(None, description="results returned; null, 0 or more than there are = all")
    top_k: TopN | None = Field(None, description="another name of `top_n`, which goes first")
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    return_documents: bool = False
    return_text: bool = Field(False, description="another name of `return_documents`")
    return_margin: bool = Field(False, description="also give yes_logit − no_logit")
    raw_scores: bool = Field(False, description="scores are margins in place of P(yes)")
    model: Text | None = Field(None, description="accepted and ignored: the index's model answers")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _exactly_one(ids=self.ids, documents=self.documents, texts=self.texts)
        return self

    @property
    def limit(self) -> int | None:
        """How many results are wanted; `None` = all."""
        return (self.top_k if self.top_n is None else self.top_n) or None


class ScorePair(BaseModel):
    """One query and one passage: a raw `document`, or the `doc_id` of a stored one."""

    id: ItemId | None = None
    query: Text
    document: Text | Document | None = None
    doc_id: DocId | None = None

    @model_validator(mode="after")
    def _one_passage(self) -> Self:
        _exactly_one(document=self.document, doc_id=self.doc_id)
        return self


class ScoreRequest(BaseModel):
    """Pairs to score, as `pairs`, or as `queries` and `documents` (also called `text_1` and `text_2`): 1:1, 1:N, N:N."""

    model_config = _example(pairs=[{"id": "a", "query": "Who discovered penicillin?", "doc_id": "d1"}])
    pairs: list[ScorePair] | None = None
    queries: Text | list[Text] | None = None
    documents: Text | Documents | None = None
    text_1: Text | list[Text] | None = None
    text_2: Text | Documents | None = None
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    return_margin: bool = Field(False, description="also give yes_logit − no_logit")
    raw_scores: bool = Field(False, description="scores are margins in place of P(yes)")
    model: Text | None = Field(None, description="accepted and ignored: the index's model answers")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        _exactly_one(pairs=self.pairs, queries=self.queries, text_1=self.text_1)
        for left, right in (("queries", "documents"), ("text_1", "text_2")):
            if (getattr(self, left) is None) != (getattr(self, right) is None):
                raise PydanticCustomError("one_side", "`{left}` and `{right}` go together", {"left": left, "right": right})
        queries, documents = self.columns()
        if len(queries) not in (1, len(documents)):
            raise PydanticCustomError(
                "lengths",
                "{queries} queries and {documents} documents: give one query, or as many as documents",
                {"queries": len(queries), "documents": len(documents)},
            )
        return self

    def columns(self) -> tuple[list[str], Documents]:
        """The two columns of the form without `pairs`; empty ones with it."""
        queries = self.text_1 if self.queries is None else self.queries
        documents = self.text_2 if self.documents is None else self.documents
        return _as_list(queries or []), _as_list(documents or [])


class Usage(BaseModel):
    """Real tokens, without padding: the prompt counts once for each passage, since it is decoded for each."""

    prompt_tokens: int
    passage_tokens: int
    total_tokens: int


class Meta(BaseModel):
    """What made the answer."""

    index_version: str
    query_truncated: bool


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
    """Results, best first, and where the milliseconds went."""

    query: str
    query_truncated: bool
    results: list[SearchHit]
    timings_ms: dict[str, float]
    index_version: str


class Health(BaseModel):
    """The service is alive, and what it serves."""

    status: Literal["ok"] = "ok"
    index_version: str
    model: str
    passages: int


class Error(BaseModel):
    """What went wrong; `ids` lists the unknown ones of a 404."""

    type: str
    message: str
    ids: list[str] | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not 200."""

    model_config = _example(error={"type": "UsageError", "message": "chunk size 3 was asked for, but …"})
    error: Error


def _exactly_one(**fields: object) -> None:
    given = [name for name, value in fields.items() if value is not None]
    if len(given) != 1:
        wanted, got = ", ".join(f"`{name}`" for name in fields), " and ".join(given) or "none"
        raise PydanticCustomError("exactly_one", "Give exactly one of {wanted}; got {got}", {"wanted": wanted, "got": got})


def _as_list(value: str | list[_T]) -> list[Any]:
    return [value] if isinstance(value, str) else value
