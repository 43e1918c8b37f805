"""`POST /rerank`, in every dialect of `dialects.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from kalm_cache.calibration import FittedCurve
from kalm_cache.calibration.fitted import require_curve
from kalm_cache.passage import PassageTemplate
from kalm_cache.scoring.ranking import best_first
from query_service.answering.context import AnswerContext
from query_service.answering.errors import EmptyError
from query_service.answering.passages import AnyPassage, StoredPassage
from query_service.answering.scores import Score, Scores
from query_service.api.body.document import Document
from query_service.api.body.limits import ItemId
from query_service.api.envelope import curve_of, margin_of, meta_of, probability_of, usage_of, value_of
from query_service.api.request_values import (
    check_count,
    passage_of,
    prompt_of,
    scoring_options,
    template_of,
    text_of,
    unused_fields,
)
from query_service.api.requests import InfinityRequest, RerankRequest
from query_service.api.responses import (
    ApiVersion,
    BilledUnits,
    DocumentText,
    InfinityResponse,
    InfinityResult,
    Meta,
    RerankResponse,
    RerankResult,
    TextResult,
)
from query_service.middleware.http.dialects import Dialect

DOCUMENTS_OF_A_SEARCH_UNIT = 100


@dataclass(frozen=True, slots=True)
class _Item:
    """One passage of a request, and the names that its result gets: the table in `responses.py` has the rule.

    `metadata`: of the fields that were asked for.
    """

    passage: AnyPassage
    doc_id: ItemId | None
    id: ItemId | None = None
    metadata: dict[str, Any] | None = None


async def answer_rerank(
    request: RerankRequest, context: AnswerContext, dialect: Dialect
) -> RerankResponse | list[TextResult]:
    """Stored or raw passages by falling margin; equal margins keep their order. `texts` get a bare array.

    Damaged ones are left out, and named.

    Raises:
        TooManyError: more documents than the service takes.
        EmptyError: no texts, in the dialect of Text Embeddings Inference.
        EncoderOffError, UnknownIdError, UsageError: as `score_pairs`; `min_probability` without a calibration.
        DamagedRecordError: a damaged passage, where the answer is a bare array.
    """
    if dialect == "tei" and not request.texts:
        raise EmptyError("texts")
    curve, least = curve_of(request, context), _least(request, context)
    items, scores = await _score(request, context)
    if request.texts is not None:
        scores.require_undamaged()  # their clients count the elements of the array
    scored = scores.by_position
    if least is not None and curve is not None:
        scored = {i: score for i, score in scored.items() if curve.probability(score.margin) >= least}
    positions = list(scored)
    best = best_first([score.margin for score in scored.values()], request.limit)
    order = [positions[place] for place in best]
    texts: list[str | None] = [None] * len(order)
    if dialect == "vllm" if request.wants_documents is None else request.wants_documents:
        texts = await _texts([items[i].passage for i in order], context)
    results = [_result(i, items[i], scored[i], text, request, curve) for i, text in zip(order, texts, strict=True)]
    if request.texts is not None:
        return [_text_result(result) for result in results]
    return RerankResponse(
        id=f"rerank-{uuid4().hex}",
        created=int(time.time()),
        model=context.notes.model_name,
        results=results,
        usage=usage_of(scores),
        meta=_meta(scores, context, dialect, len(items)),
    )


async def answer_infinity_rerank(request: InfinityRequest, context: AnswerContext) -> InfinityResponse:
    """As `answer_rerank`, with documents as plain strings, as Infinity has them."""
    documents = request.texts or request.documents
    answer = await answer_rerank(
        request.model_copy(update={"documents": documents, "texts": None}), context, "infinity"
    )
    assert isinstance(answer, RerankResponse)
    results = [
        InfinityResult(
            **result.model_dump(exclude={"document"}),
            document=None if result.document is None else result.document.text,
        )
        for result in answer.results
    ]
    return InfinityResponse(**answer.model_dump(exclude={"results"}), results=results)


def _meta(scores: Scores, context: AnswerContext, dialect: Dialect, documents: int) -> Meta:
    meta = meta_of(scores, context)
    if dialect == "cohere-1" or dialect == "cohere-2":
        units = BilledUnits(search_units=-(-documents // DOCUMENTS_OF_A_SEARCH_UNIT))
        version = ApiVersion(version="1" if dialect == "cohere-1" else "2")
        return meta.model_copy(update={"api_version": version, "billed_units": units})
    return meta


async def _score(request: RerankRequest, context: AnswerContext) -> tuple[list[_Item], Scores]:
    check_count(len(request.given), "documents", context)
    template = template_of(request, context)
    items = _items(request, template)
    rows = list(range(len(items)))  # of the items that are scored
    if request.filter is not None or request.fields:
        found = await context.describe([str(item.doc_id) for item in items], request.filter, request.fields)
        rows = [row for row in rows if found.matches[row] is not False]  # what is not stored is an error, as ever
        described = zip(items, found.values, strict=True)
        items = [replace(item, metadata=values if request.fields else None) for item, values in described]
    context.notes.unused_fields = unused_fields(request, request.given_documents, template)
    only_ids = request.ids is not None and request.documents is None
    options = scoring_options(request, on_missing="error" if only_ids else "encode")
    prompt = prompt_of(request.query, request.instruction, context.settings)
    scores = await context.score_pairs([prompt] * len(rows), [items[row].passage for row in rows], options)
    by_row: list[Score | None] = [None] * len(items)
    for row, score in zip(rows, scores.scores, strict=True):
        by_row[row] = score
    scores = replace(scores, scores=by_row)
    context.notes.truncated = scores.truncated
    return items, scores


def _items(request: RerankRequest, template: PassageTemplate) -> list[_Item]:
    documents, name = request.given_documents, "documents" if request.texts is None else "texts"
    if request.ids is None:
        return [_item(document, template, f"{name}.{i}") for i, document in enumerate(documents)]
    texts: Sequence[str | None] = [text_of(document, template, f"{name}.{i}") for i, document in enumerate(documents)]
    texts = texts or [None] * len(request.ids)
    return [_Item(StoredPassage(doc_id, text), doc_id) for doc_id, text in zip(request.ids, texts, strict=True)]


def _item(document: str | Document, template: PassageTemplate, name: str) -> _Item:
    passage = passage_of(document, template, name)
    if isinstance(document, str):
        return _Item(passage, None)
    return _Item(passage, document.doc_id if document.stored_id is None else document.stored_id, document.id)


def _least(request: RerankRequest, context: AnswerContext) -> float | None:
    """The probability that results must have. Raises `UsageError` where nothing says how probable they are."""
    least = context.settings.min_probability if request.min_probability is None else request.min_probability
    if least is not None:
        require_curve(context.model.calibration, request.chunk_size or context.model.chunk_size, "min_probability")
    return least


def _result(
    index: int, item: _Item, score: Score, text: str | None, request: RerankRequest, curve: FittedCurve | None
) -> RerankResult:
    value = value_of(score, request)
    return RerankResult(
        index=index,
        relevance_score=value,
        score=value,
        doc_id=item.doc_id,
        id=item.id,
        margin=margin_of(score, request),
        probability=probability_of(score, curve),
        cache=score.cache,
        document=None if text is None else DocumentText(text=text),
        metadata=item.metadata,
    )


def _text_result(result: RerankResult) -> TextResult:
    text = None if result.document is None else result.document.text
    return TextResult(
        **result.model_dump(include={"index", "score", "doc_id", "id", "margin", "probability"}), text=text
    )


async def _texts(passages: Sequence[AnyPassage], context: AnswerContext) -> list[str | None]:
    """The text of each passage; `None` where the index keeps none, or a damaged one."""
    to_read = [passage for passage in passages if isinstance(passage, StoredPassage) and passage.text is None]
    stored: dict[AnyPassage, str | None] = {}
    if to_read:
        stored.update(zip(to_read, await context.find_texts([each.doc_id for each in to_read]), strict=True))
    return [stored.get(passage, passage.text) for passage in passages]
