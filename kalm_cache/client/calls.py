"""Arguments -> requests, and how their responses are read. Opens no socket and knows nothing of trying again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import httpx

from kalm_cache.arguments import (
    PAIRS,
    as_list,
    check_count,
    check_doc_id,
    check_doc_ids,
    check_fields,
    check_limit,
    check_pair,
    check_text,
)
from kalm_cache.client.answers import (
    Explanation,
    PairScore,
    ServedAnswer,
    read_explanation,
    read_models,
    read_rerank,
    read_scores,
    read_search,
)
from kalm_cache.client.options import ExplainOptions, RerankOptions, ScoreOptions, SearchOptions
from kalm_cache.client.retries import Outcome, failure_of, failure_without_response, foreign_response
from kalm_cache.errors import DeadlineExceededError, ServiceUnavailableError, UsageError
from kalm_cache.passage import ID_NAMES, TEXT_NAMES, first_present
from kalm_cache.scoring.ranking import best_first

if TYPE_CHECKING:
    from kalm_cache.reranker import Ranked

PAIRS_PER_REQUEST = 256
JSON_HEADERS = {"content-type": "application/json"}
DocumentLike = str | Mapping[str, Any]
PairLike = tuple[str, DocumentLike] | Mapping[str, Any]
_Value = TypeVar("_Value")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Call(Generic[_Value]):
    """One request, and how its response is read. `body` is JSON-like; `None` = GET."""

    path: str
    body: Mapping[str, Any] | None
    read: Callable[[Any], _Value]

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "GET" if self.body is None else "POST"

    @property
    def headers(self) -> dict[str, str]:
        """What the request adds to the client's headers."""
        return {} if self.body is None else JSON_HEADERS

    @property
    def content(self) -> bytes | None:
        """The body's bytes. Raises `UsageError` where it is no JSON, or holds text that is not valid Unicode."""
        if self.body is None:
            return None
        try:
            return json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except (TypeError, ValueError) as exc:
            raise UsageError(f"the request cannot be written as JSON: {exc}") from exc

    def finish(self, outcome: Outcome) -> _Value:
        """The value that the last try's outcome stands for.

        Raises:
            KalmCacheError: the one that the response's status and body name; `ServiceError` where nothing fits.
        """
        if isinstance(outcome, httpx.RequestError):
            raise failure_without_response(outcome) from outcome
        if outcome.status_code != 200:
            raise failure_of(outcome)
        try:
            return self.read(json.loads(outcome.content))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            raise foreign_response(outcome) from exc


def search(query: str, options: SearchOptions) -> Call[ServedAnswer]:
    """First stage and cached rerank in one call."""
    top_n = check_limit(options.get("top_n", 10), "top_n")
    body = _given(
        query=check_text(query, "query"),
        k=check_count(options.get("k", 100), "k"),
        top_n=top_n or 0,  # a service takes null as its own default, and 0 as all
        return_documents=options.get("with_text", True),
        **_same(options, "first_stage", "first_stage_weight", "min_probability", "instruction", "chunk_size"),
        **_same(options, "filter", "fields"),
        **_same(options, "budget_ms", "timeout_ms"),
    )
    return Call("/search", body, read_search)


def rerank(
    query: str,
    ids: Sequence[str | int] | None,
    documents: Iterable[DocumentLike] | None,
    options: RerankOptions,
) -> Call[ServedAnswer]:
    """Stored passages by id (no text is sent), or documents: texts, or `{"text", "title", "doc_id"}`."""
    if (ids is None) == (documents is None):
        raise UsageError("give either ids or documents")
    sent = None if documents is None else _documents(documents)
    texts = None if sent is None else [_text(document) for document in sent]
    with_text = options.get("with_text", True)
    body = _given(
        query=check_text(query, "query"),
        ids=None if ids is None else check_doc_ids(ids),
        documents=sent,
        top_n=check_limit(options.get("top_n"), "top_n"),
        return_margin=True,
        return_documents=with_text and (texts is None or None in texts),  # what fields make, the service says
        **_same(
            options, "instruction", "chunk_size", "min_probability", "on_missing", "truncate", "cache", "timeout_ms"
        ),
        **_same(options, "filter", "fields"),
    )
    return Call("/rerank", body, lambda answer: read_rerank(answer, query, texts if with_text else None))


def score(pairs: Iterable[PairLike], options: ScoreOptions) -> Iterator[Call[list[PairScore]]]:
    """Pairs in requests of `batch_size`; joined, their values are in the order of the pairs."""
    size = check_limit(options.get("batch_size"), "batch_size") or PAIRS_PER_REQUEST
    common = _same(options, "instruction", "chunk_size", "truncate", "cache", "timeout_ms")
    for batch in _batches((_pair(f"pairs[{i}]", pair) for i, pair in enumerate(as_list(pairs, "pairs", PAIRS))), size):
        yield Call("/score", _given(pairs=batch, return_margin=True, **common), _exactly(len(batch), read_scores))


def explain(query: str, doc_id: str | int, options: ExplainOptions) -> Call[Explanation]:
    """The attention of a query over one stored passage."""
    body = _given(
        query=check_text(query, "query"),
        id=check_doc_id(doc_id, "doc_id"),
        **_same(options, "instruction", "chunk_size", "filter", "timeout_ms"),
    )
    return Call("/explain", body, read_explanation)


def health() -> Call[dict[str, Any]]:
    """What is served."""
    return Call("/health", None, dict)


def ready() -> Call[bool]:
    """Whether requests are answered now; read its outcome with `is_ready`."""
    return Call("/ready", None, lambda _: True)


def is_ready(outcome: Outcome) -> bool:
    """What a `ready` came to. Out of reach, busy, starting and too late are no failures here: they mean "no"."""
    try:
        return ready().finish(outcome)
    except (ServiceUnavailableError, DeadlineExceededError):
        return False


def models() -> Call[list[str]]:
    """The names that a request's `model` may have."""
    return Call("/v1/models", None, read_models)


def raw(path: str, body: Mapping[str, Any] | None) -> Call[Any]:
    """Any request; its JSON response is returned unchanged."""
    return Call(path, body, lambda answer: answer)


def ranked(scores: Sequence[PairScore], top_k: int | None, return_margin: bool) -> list[Ranked]:
    """Scores of one query's documents -> `[{"corpus_id", "score", "margin"?}]`, best first, as `KaLMReranker.rank`."""
    order = best_first([pair.margin for pair in scores], check_limit(top_k, "top_k", least=0))
    ranking: list[Ranked] = [{"corpus_id": i, "score": scores[i].score} for i in order]
    if return_margin:
        for entry in ranking:
            entry["margin"] = scores[entry["corpus_id"]].margin
    return ranking


def predicted(scores: Sequence[PairScore], return_margin: bool) -> list[Any]:
    """Scores -> P(yes) of each, or `{"score", "margin"}`, as `KaLMReranker.predict`."""
    if return_margin:
        return [{"score": pair.score, "margin": pair.margin} for pair in scores]
    return [pair.score for pair in scores]


def pairs_of(query: str, documents: Iterable[DocumentLike]) -> list[PairLike]:
    """One query's documents as pairs. Raises `UsageError` where these are no query and no list of documents."""
    checked = check_text(query, "query")
    return [(checked, document) for document in _documents(documents)]


def stored_pairs_of(query: str, ids: Sequence[str | int]) -> list[PairLike]:
    """One query's stored passages as pairs. Raises `UsageError` where these are no query and no list of ids."""
    checked = check_text(query, "query")
    return [{"query": checked, "doc_id": doc_id} for doc_id in check_doc_ids(ids)]


def _pair(name: str, pair: PairLike) -> dict[str, Any]:
    if isinstance(pair, Mapping):
        fields = {field: _pair_field(f"{name}[{field!r}]", field, value) for field, value in pair.items()}
        return _renamed(fields, "label")
    query, given = check_pair(pair, name)
    document = _document(given, f"{name}[1]")
    id_name = None if isinstance(document, str) else first_present(ID_NAMES, document)
    if isinstance(document, str) or id_name is None or first_present(TEXT_NAMES, document):
        return {"query": query, "document": document}
    return {"query": query, "doc_id": document[id_name]}


def _pair_field(name: str, field: str, value: Any) -> Any:
    if field == "doc_id" and value is not None:
        return check_doc_id(value, name)
    if field == "document" and value is not None:
        return _document(value, name)
    return check_text(value, name) if field == "query" else value


def _documents(documents: Iterable[DocumentLike]) -> list[DocumentLike]:
    return [_document(document, f"documents[{i}]") for i, document in enumerate(as_list(documents, "documents"))]


def _document(document: DocumentLike, name: str) -> str | dict[str, Any]:
    fields = check_fields(document, name)
    return fields if isinstance(fields, str) else _renamed(fields, "doc_id")


def _text(document: DocumentLike) -> str | None:
    """The text of a document that is nothing else; `None` where other fields may be part of its passage."""
    if isinstance(document, str):
        return document
    return document.get("text") if {"text"}.issuperset(document.keys() - ID_NAMES) else None


def _renamed(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields, with `name` as `id`: services of every release take that."""
    return {"id" if field == name else field: value for field, value in fields.items()}


def _given(**fields: Any) -> dict[str, Any]:
    """The fields without those that are `None`: the service's own values hold there."""
    return {name: value for name, value in fields.items() if value is not None}


def _same(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options.get(name) for name in names}


def _exactly(count: int, read: Callable[[Any], list[_Item]]) -> Callable[[Any], list[_Item]]:
    def read_all(body: Any) -> list[_Item]:
        values = read(body)
        if len(values) != count:
            raise ValueError(f"{len(values)} results for {count} pairs")
        return values

    return read_all


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
