"""Requests -> responses, one function an endpoint, awaited with the request's context. Knows nothing of routes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from uuid import uuid4

from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import Tokens
from kalm_cache.scoring.cached_passages import LookUp
from kalm_cache.scoring.prefix_cache import CachedPrefix
from kalm_cache.scoring.query_side import score_of
from kalm_cache.scoring.results import results_of
from query_service.api.errors import TooManyError
from query_service.api.requests import (
    Document,
    ItemId,
    PairOptions,
    RerankRequest,
    ScorePair,
    ScoreRequest,
    SearchRequest,
)
from query_service.api.responses import (
    DocumentText,
    InfinityResponse,
    InfinityResult,
    Meta,
    PairResult,
    PairsResponse,
    RerankResponse,
    RerankResult,
    ScoreData,
    ScoreResponse,
    SearchHit,
    SearchResponse,
    TextResult,
    Usage,
)
from query_service.api.responses import Plan as PlanResponse
from query_service.engine.budget import Plan, fit, reduced
from query_service.engine.cost import state_weight
from query_service.engine.request_context import RequestContext
from query_service.engine.scoring import OnMissing, Options, Raw, Score, Scores, Stored, score_pairs

COARSEST_RATIO = 32  # KaLM-Reranker-V1 was trained up to it
AFTER_DECODING_MS = 3.0  # texts are read and the answer is written


async def answer_search(request: SearchRequest, work: RequestContext) -> SearchResponse:
    """First stage and cached rerank of one query."""
    settings, index = work.settings, work.index
    instruction = settings.instruction if request.instruction is None else request.instruction
    top_n = settings.top_n if request.top_n is None else request.top_n
    k = settings.k if request.k is None else request.k
    weight = request.first_stage_weight
    if weight is None:
        weight = settings.first_stage_weight_for(index.generation.manifest.model)
    _check_count(k, "candidates", work)
    mode: Mode | None = request.first_stage or settings.first_stage
    found = await work.read("first_stage", lambda: index.find(request.query, k, mode))

    def look_up() -> tuple[Tokens, LookUp]:
        system = settings.system_instruction
        prompt = index.query_side.prompt(request.query, instruction, system)
        return prompt, index.look_up(found.doc_ids, [prompt], instruction, system, chunk_size=request.chunk_size)

    async with work.holding_states():
        prompt, lookup = await work.read("read", look_up)
        plan = None if request.budget_ms is None else _plan(request.budget_ms, lookup, prompt, work)
        if plan is not None and plan.reduced:
            lookup = await work.read("read", partial(reduced, lookup, plan))
        work.counts.add_read(lookup)
        work.counts.queries_cut += prompt.truncated
        read = await work.prepared(lookup)
        margins = await work.margins([prompt] * len(read.passages), [one.states for one in read.passages])
    results, textless = await work.read(
        "read",
        lambda: results_of(
            found.doc_ids,
            read.positions,
            margins,
            top_n=top_n or None,
            find_texts=index.find_texts if request.return_documents else None,
            candidates=found.candidates,
            first_stage_weight=weight,
        ),
    )
    damaged = [*found.damaged, *(one.doc_id for one in read.damaged), *textless]
    return SearchResponse(
        query=request.query,
        query_truncated=prompt.truncated,
        results=[SearchHit(**asdict(result)) for result in results],
        timings_ms=work.finished(),
        index_version=work.served.version,
        damaged=list(dict.fromkeys(damaged)),
        plan=None if plan is None else PlanResponse(**asdict(plan)),
    )


async def answer_rerank(request: RerankRequest, work: RequestContext) -> RerankResponse | list[TextResult]:
    """Stored or raw passages by falling margin; equal margins keep their order. `texts` get a bare array.

    Damaged ones are left out, and named.
    """
    names, passages = _named_passages(request)
    _check_count(len(passages), "documents", work)
    only_ids = request.ids is not None and request.documents is None
    options = _options(request, work, on_missing="error" if only_ids else "encode")
    scores = await score_pairs(work, [request.query] * len(passages), passages, options)
    if request.texts is not None:
        scores.require_valid()  # their clients count the elements of the array
    found = {i: score for i, score in enumerate(scores.scores) if score is not None}
    order = sorted(found, key=lambda i: -found[i].margin)[: request.limit]
    texts: list[str | None] = [None] * len(order)
    if request.return_documents or request.return_text:
        texts = await work.read("read", lambda: _texts([passages[i] for i in order], work))
    results = [_rerank_result(i, names[i], found[i], text, request) for i, text in zip(order, texts, strict=True)]
    if request.texts is not None:
        return [_text_result(result) for result in results]
    return RerankResponse(
        id=f"rerank-{uuid4().hex}",
        created=int(time.time()),
        model=work.model,
        results=results,
        usage=_usage(scores),
        meta=_meta(scores, work),
    )


async def answer_infinity_rerank(request: RerankRequest, work: RequestContext) -> InfinityResponse:
    """As `answer_rerank`, with documents as plain strings, as Infinity has them."""
    answer = await answer_rerank(
        request.model_copy(update={"documents": request.texts or request.documents, "texts": None}), work
    )
    assert isinstance(answer, RerankResponse)
    results = [
        InfinityResult(
            **one.model_dump(exclude={"document"}), document=None if one.document is None else one.document.text
        )
        for one in answer.results
    ]
    return InfinityResponse(**answer.model_dump(exclude={"results"}), results=results)


def _named_passages(request: RerankRequest) -> tuple[list[ItemId | None], list[Stored | Raw]]:
    """The client's name for each passage, and the passage."""
    given = [_document(one) for one in (request.documents if request.texts is None else request.texts) or []]
    if request.ids is None:
        return [one.id for one in given], [_passage(one) for one in given]
    if not given:
        return list(request.ids), [Stored(doc_id) for doc_id in request.ids]
    return list(request.ids), [Stored(doc_id, one.text) for doc_id, one in zip(request.ids, given, strict=True)]


async def answer_score(request: ScoreRequest, work: RequestContext) -> PairsResponse | ScoreResponse:
    """Pairs in the order given, in the dialect that they came in."""
    if request.pairs is not None:
        return await _answer_pairs(request, request.pairs, work)
    queries, documents = request.columns()
    if len(queries) == 1:
        queries = queries * len(documents)
    _check_count(len(documents), "documents", work)
    passages = [_passage(_document(document)) for document in documents]
    scores = await score_pairs(work, queries, passages, _options(request, work, on_missing="encode"))
    data = [
        ScoreData(index=i, score=_score(score, request), margin=score.margin if request.return_margin else None)
        for i, score in enumerate(scores.require_valid())
    ]
    return ScoreResponse(
        id=f"score-{uuid4().hex}",
        created=int(time.time()),
        model=work.model,
        data=data,
        usage=_usage(scores),
        meta=_meta(scores, work),
    )


async def _answer_pairs(request: ScoreRequest, pairs: list[ScorePair], work: RequestContext) -> PairsResponse:
    _check_count(len(pairs), "pairs", work)
    passages = [
        Stored(str(pair.doc_id)) if pair.document is None else _passage(_document(pair.document)) for pair in pairs
    ]
    default: OnMissing = "error" if any(pair.document is None for pair in pairs) else "encode"
    options = _options(request, work, on_missing=default)
    scores = await score_pairs(work, [pair.query for pair in pairs], passages, options)
    results = [
        PairResult(
            index=i, id=pair.id, score=_score(score, request), margin=score.margin if request.return_margin else None
        )
        for i, (pair, score) in enumerate(zip(pairs, scores.require_valid(), strict=True))
    ]
    return PairsResponse(model=work.model, results=results, usage=_usage(scores), meta=_meta(scores, work))


def _plan(budget_ms: float, found: LookUp, prompt: Tokens, work: RequestContext) -> Plan:
    """What the rest of a budget allows, behind what waits for the decoder already."""
    ready = {**found.hits, **found.to_prefill}
    tokens = [ready[doc_id].tokens for doc_id in found.ids if doc_id in ready]
    under_prefix = any(isinstance(passage, CachedPrefix) for passage in ready.values()) or bool(found.to_prefill)
    own = len(prompt.ids) - (len(found.prefix) if under_prefix else 0)
    weight = 0.0 if under_prefix else state_weight(work.index.query_side)
    cost = work.engine.cost
    return fit(
        tokens,
        found.chunk_size,
        budget_ms - work.elapsed_ms - work.engine.backlog_ms - AFTER_DECODING_MS,
        lambda count, pooled: cost.ms(count * own + weight * pooled),
        coarsest=found.chunk_size if under_prefix else COARSEST_RATIO,
    )


def _options(request: PairOptions, work: RequestContext, *, on_missing: OnMissing) -> Options:
    return Options(
        instruction=work.settings.instruction if request.instruction is None else request.instruction,
        chunk_size=request.chunk_size,
        on_missing=request.on_missing or on_missing,
        truncate=request.truncate,
        max_tokens=request.max_tokens,
    )


def _check_count(count: int, what: str, work: RequestContext) -> None:
    if count > work.settings.max_documents:
        raise TooManyError(what, count, work.settings.max_documents)


def _rerank_result(
    index: int, name: ItemId | None, score: Score, text: str | None, request: RerankRequest
) -> RerankResult:
    value = _score(score, request)
    return RerankResult(
        index=index,
        relevance_score=value,
        score=value,
        id=name,
        margin=score.margin if request.return_margin else None,
        cache=score.cache,
        document=None if text is None else DocumentText(text=text),
    )


def _text_result(result: RerankResult) -> TextResult:
    text = None if result.document is None else result.document.text
    return TextResult(index=result.index, score=result.score, id=result.id, margin=result.margin, text=text)


def _texts(passages: Sequence[Stored | Raw], work: RequestContext) -> list[str | None]:
    """The text of each passage; `None` where the index keeps none, or a damaged one."""
    doc_ids = [passage.doc_id for passage in passages if isinstance(passage, Stored)]
    kept = {
        doc_id: text if isinstance(text, str) else None
        for doc_id, text in zip(doc_ids, work.index.find_texts(doc_ids), strict=True)
    }
    return [kept[one.doc_id] if isinstance(one, Stored) and one.text is None else one.text for one in passages]


def _document(document: str | Document) -> Document:
    return document if isinstance(document, Document) else Document(text=document)


def _passage(document: Document) -> Stored | Raw:
    """A document with an id may be stored; under a number it cannot be, as ids of an index are strings."""
    return Stored(document.id, document.text) if isinstance(document.id, str) and document.id else Raw(document.text)


def _score(score: Score, request: PairOptions) -> float:
    return score.margin if request.raw_scores else score_of(score.margin)


def _usage(scores: Scores) -> Usage:
    return Usage(
        prompt_tokens=scores.prompt_tokens,
        passage_tokens=scores.passage_tokens,
        total_tokens=scores.prompt_tokens + scores.passage_tokens,
    )


def _meta(scores: Scores, work: RequestContext) -> Meta:
    return Meta(
        index_version=work.served.version,
        query_truncated=scores.query_truncated,
        truncated=scores.cut,
        missing=scores.missing,
        damaged=[one.doc_id for one in scores.damaged],
        timings_ms=work.finished(),
    )
