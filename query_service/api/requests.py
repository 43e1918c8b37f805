"""Request bodies. Knows nothing of models, indexes or how answers are made.

A field that nobody uses: where a request has a form of this service alone (`/search`, `/explain`, `ids`, `pairs`) it is
refused by name, as a misspelt one would be. Other forms are sent by clients of other services, which write fields of
their own: there, the answer names what it did not use, in `meta.unused_fields` or, of a bare array, in the header
`X-Unused-Fields`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import CutSide
from kalm_cache.passage import OnMissing
from query_service.api.body.document import Document, Documents
from query_service.api.body.limits import (
    DocId,
    Flag,
    ItemId,
    Name,
    Real,
    Text,
    Whole,
    agreed,
    exactly_one,
    nothing_unused,
)

_T = TypeVar("_T")
TOKENS_PER_DOC = "tokens_per_doc"  # the type of its validation error: a 400, as vLLM and Cohere have it
TEXT_COLUMNS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


def _tokens_per_doc(value: object) -> object:
    if type(value) is not int or value < 1:
        raise PydanticCustomError(TOKENS_PER_DOC, "max_tokens_per_doc must be a positive integer")
    return value


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


TopN = Annotated[Whole, Field(ge=0)]
TokensPerDoc = Annotated[int, Field(ge=1), BeforeValidator(_tokens_per_doc)]
TimeoutMs = Annotated[Whole, Field(ge=1, description="answer by then or with 504; the service's own limit holds too")]
ChunkSize = Annotated[Whole, Field(ge=1, le=1 << 20, description="pooling ratio: the stored one or a multiple of it")]
Probability = Annotated[
    Real, Field(ge=0, le=1, description="results with a lower `probability` are left out; takes a calibrated index")
]
ON_MISSING = (
    "what becomes of passages that the index does not hold: error (404; the default of ids), skip, "
    "or encode their text (the default of documents)"
)


class Request(BaseModel):
    """A field that is null counts as left out: several clients write every field that they know."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


Filter = Annotated[
    dict[str, Any],
    Field(description='which stored passages count, by their metadata, such as {"lang": "de", "year": {"$gte": 2020}}'),
]
Fields = Annotated[
    list[Name], Field(description="metadata that results have, by its fields; * = all that the index keeps")
]


class SearchRequest(Request):
    """First stage, then cached rerank."""

    model_config = ConfigDict(extra="forbid") | _example(query="Who discovered penicillin?", k=100, top_n=3)
    query: Text
    k: Whole | None = Field(None, ge=1, description="candidates that are reranked; null = the service's (100)")
    top_n: TopN | None = Field(None, description="results returned; null = the service's (10), 0 = all")
    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    first_stage: Mode | None = Field(None, description="null = the service's (the best that the index has)")
    first_stage_weight: Annotated[Real, Field(ge=0)] | Literal["auto"] | None = Field(
        None, description="order by margin + this · the first stage's z-score; auto: as the index is calibrated"
    )
    min_probability: Probability | None = None
    filter: Filter | None = None
    fields: Fields = []
    return_documents: Flag = True
    budget_ms: Real | None = Field(
        None, gt=0, description="time for the whole answer: fewer candidates or a coarser ratio are chosen to keep it"
    )
    timeout_ms: TimeoutMs | None = None
    model: Name | None = Field(None, description="one of /v1/models, or left out")

    @property
    def all_queries(self) -> list[str]:
        """Every query of the request."""
        return [self.query]


class PairOptions(Request):
    """What requests that score pairs have in common."""

    instruction: Text | None = Field(None, description="what the query asks for; null = the service's")
    chunk_size: ChunkSize | None = None
    return_margin: Flag = Field(False, description="also give yes_logit − no_logit")
    raw_scores: Flag | None = Field(None, description="scores are margins in place of P(yes); null = false")
    use_activation: Flag | None = Field(None, description="the opposite of `raw_scores`")
    activation: Flag | None = Field(None, description="another name of `use_activation`")
    truncate: Flag = Field(True, description="false: what has too many tokens is an error and is not cut")
    max_tokens_per_doc: TokensPerDoc | None = Field(None, description="tokens of a document that count")
    truncate_prompt_tokens: Whole | None = Field(
        None, ge=-1, description="another name of `max_tokens_per_doc`; -1 = all"
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="left: a document's end counts, and its start is cut; null = right"
    )
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = Field(
        None, description="another name of `truncation_side`"
    )
    on_missing: OnMissing | None = Field(None, description=ON_MISSING)
    cache: Flag = Field(True, description="false: the texts are private; no cache has or gets them")
    timeout_ms: TimeoutMs | None = None
    model: Name | None = Field(None, description="one of /v1/models, or left out")

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        agreed("raw_scores, use_activation and activation", self._raw_wishes())
        agreed("truncation_side and truncation_direction", self._side_wishes())
        return self

    @property
    def wants_margins(self) -> bool:
        """Whether scores are margins in place of P(yes)."""
        return True in self._raw_wishes()

    @property
    def cut_side(self) -> CutSide:
        """The side of a document that is cut where it is too long."""
        return "left" if "left" in self._side_wishes() else "right"

    def _raw_wishes(self) -> set[bool | None]:
        activated = (self.use_activation, self.activation)
        return {self.raw_scores, *(None if wish is None else not wish for wish in activated)}

    def _side_wishes(self) -> set[str | None]:
        return {self.truncation_side, self.truncation_direction and self.truncation_direction.lower()}

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a that count; `None` = as many as of an indexed one."""
        given = self.truncate_prompt_tokens if self.max_tokens_per_doc is None else self.max_tokens_per_doc
        return given if given is not None and given > 0 else None


class RerankRequest(PairOptions):
    """Passages to rank: stored ones by `ids`, or raw ones as `documents` or `texts`; exactly one of the three.

    With `ids`, `documents` may hold their texts in the same order: they are used where the index does not have the id.
    """

    model_config = _example(query="Who discovered penicillin?", ids=["d1", "d2"], top_n=1)
    query: Text
    ids: list[DocId] | None = Field(None, description="ids of stored passages: no encoder runs")
    documents: Documents | None = Field(None, description="raw documents, encoded on the fly")
    texts: Documents | None = Field(None, description="as `documents`, answered by a bare array")
    top_n: TopN | None = Field(None, description="results returned; null, 0 or more than there are = all")
    top_k: TopN | None = Field(None, description="another name of `top_n`, which goes first")
    rank_fields: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="fields of the documents that make their passages, in this order; null = the index's template"
    )
    min_probability: Probability | None = None
    filter: Filter | None = None
    fields: Fields = []
    return_documents: Flag | None = Field(
        None, description="texts in the results; null = only in vLLM's dialect, which has them always"
    )
    return_text: Flag | None = Field(None, description="another name of `return_documents`")

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        if self.ids is not None:
            nothing_unused(self)
            if self.documents is None and self.rank_fields is not None:
                raise PydanticCustomError("unused", "`rank_fields` are of documents, and `ids` have none; leave it out")
        elif self.filter is not None or self.fields:
            raise PydanticCustomError(
                "unused", "`filter` and `fields` are of stored passages; send their ids as `ids`, or leave them out"
            )
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.ids is None or self.documents is None:
            exactly_one(ids=self.ids, documents=self.documents, texts=self.texts)
        elif len(self.ids) != len(self.documents):
            raise PydanticCustomError(
                "lengths",
                "{ids} ids and {documents} documents: the documents are the texts of the ids, give one for each",
                {"ids": len(self.ids), "documents": len(self.documents)},
            )
        else:
            exactly_one(ids=self.ids, texts=self.texts)
        return self

    @property
    def all_queries(self) -> list[str]:
        """Every query of the request."""
        return [self.query]

    @property
    def wants_documents(self) -> bool | None:
        """Whether results hold their texts; `None` = the dialect says."""
        wishes = {self.return_documents, self.return_text} - {None}
        return any(wishes) if wishes else None

    @property
    def given_documents(self) -> Documents:
        """The raw documents, under whatever name."""
        return (self.documents if self.texts is None else self.texts) or []

    @property
    def given(self) -> Sequence[object]:
        """What is to be ranked: the ids, or else the documents."""
        return self.given_documents if self.ids is None else self.ids

    @property
    def limit(self) -> int | None:
        """How many results are wanted; `None` = all."""
        return (self.top_k if self.top_n is None else self.top_n) or None


class InfinityRequest(RerankRequest):
    """As `RerankRequest`, with Infinity's bounds: there is something to rank, and something is wanted."""

    documents: Annotated[Documents, Field(min_length=1)] | None = None
    texts: Annotated[Documents, Field(min_length=1)] | None = None
    top_n: Annotated[int, Field(gt=0)] | None = Field(None, description="results returned; null = all")


class ScorePair(BaseModel):
    """One query and one passage: a raw `document`, or the `doc_id` of a stored one."""

    model_config = ConfigDict(extra="forbid")
    label: ItemId | None = Field(None, description="the client's own tag of the pair, handed back")
    id: ItemId | None = Field(None, description="another name of `label`, then handed back as both")
    query: Text
    document: Text | Document | None = None
    doc_id: DocId | None = None

    @model_validator(mode="after")
    def _one_passage(self) -> Self:
        exactly_one(document=self.document, doc_id=self.doc_id)
        return self


class ScoreRequest(PairOptions):
    """Pairs to score, as `pairs`, or as two columns that are 1:1, 1:N or N:N.

    Columns are `queries` and `documents` or `items`, `text_1` and `text_2`, or `data_1` and `data_2`.
    """

    model_config = _example(pairs=[{"label": "a", "query": "Who discovered penicillin?", "doc_id": "d1"}])
    pairs: list[ScorePair] | None = None
    queries: Text | list[Text] | None = None
    documents: Text | Documents | None = None
    items: Text | Documents | None = Field(None, description="another name of `documents`")
    text_1: Text | list[Text] | None = None
    text_2: Text | Documents | None = None
    data_1: Text | list[Text] | None = None
    data_2: Text | Documents | None = None

    @model_validator(mode="after")
    def _nothing_unused(self) -> Self:
        if self.pairs is not None:
            nothing_unused(self)
        return self

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        exactly_one(pairs=self.pairs, queries=self.queries, text_1=self.text_1, data_1=self.data_1)
        for left in dict(TEXT_COLUMNS):
            rights = [right for first, right in TEXT_COLUMNS if first == left]
            given = [right for right in rights if getattr(self, right) is not None]
            if len(given) != (getattr(self, left) is not None):
                names = {"left": left, "right": "` or `".join(rights)}
                raise PydanticCustomError("one_side", "`{left}` and `{right}` go together", names)
        queries, documents = self.columns()
        if len(queries) not in (1, len(documents)):
            raise PydanticCustomError(
                "lengths",
                "{queries} queries and {documents} documents: give one query, or as many as documents",
                {"queries": len(queries), "documents": len(documents)},
            )
        return self

    @property
    def all_queries(self) -> list[str]:
        """Every query of the request."""
        return self.columns()[0] if self.pairs is None else [pair.query for pair in self.pairs]

    def columns(self) -> tuple[list[str], Documents]:
        """The two columns of the form without `pairs`; empty ones with it."""
        if self.pairs is not None:
            return [], []
        left = next(left for left, right in TEXT_COLUMNS if right == self.right_column)
        return _as_list(getattr(self, left)), _as_list(getattr(self, self.right_column))

    @property
    def right_column(self) -> str:
        """The name of the field that holds the documents of the form without `pairs`."""
        return next(right for _, right in TEXT_COLUMNS if getattr(self, right) is not None)


def _as_list(value: str | list[_T] | None) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else value
