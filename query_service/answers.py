"""Requests -> responses, one function an endpoint. Plain blocking calls: knows nothing of HTTP or threads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from uuid import uuid4

from kalm_cache.query_side import score_of
from query_service.requests import Document, ItemId, RerankRequest, ScorePair, ScoreRequest, SearchRequest
from query_service.responses import (
    DocumentText,
    Health,
    Meta,
    PairResult,
    PairsResponse,
    PrefixCache,
    RerankResponse,
    RerankResult,
    ScoreData,
    ScoreResponse,
    SearchHit,
    SearchResponse,
    TextResult,
    Usage,
)
from query_service.scoring import Raw, Scorer, Scores, Stored


def answer_health(scorer: Scorer) -> Health:
    """What is served."""
    tier = scorer.index.prefix_tier
    return Health(
        index_version=scorer.index_version,
        model=scorer.model,
        passages=len(scorer.index),
        damaged_reads=scorer.index.damaged_reads,
        prefix_cache=None if tier is None else PrefixCache(**asdict(tier.stats())),
    )


def answer_search(request: SearchRequest, scorer: Scorer) -> SearchResponse:
    """First stage and cached rerank of one query."""
    settings = scorer.settings
    top_n = settings.top_n if request.top_n is None else request.top_n
    answer = scorer.index.search(
        request.query,
        k=settings.k if request.k is None else request.k,
        top_n=top_n or None,
        first_stage=request.first_stage or settings.first_stage,
        instruction=settings.instruction if request.instruction is None else request.instruction,
        system_instruction=settings.system_instruction,
        chunk_size=request.chunk_size,
        with_text=request.return_documents,
    )
    return SearchResponse(
        query=answer.query,
        query_truncated=answer.query_truncated,
        results=[SearchHit(**asdict(result)) for result in answer.results],
        timings_ms=answer.timings_ms,
        index_version=scorer.index_version,
        damaged=answer.damaged,
    )


def answer_rerank(request: RerankRequest, scorer: Scorer) -> RerankResponse | list[TextResult]:
    """Stored or raw passages by falling margin; equal margins keep their order. `texts` get a bare array.

    Damaged ones are left out, and named.
    """
    given = request.ids if request.ids is not None else [_document(d) for d in request.documents or request.texts or []]
    passages: list[Stored | Raw] = [Stored(item) if isinstance(item, str) else Raw(item.text) for item in given]
    scores = scorer.score(
        [request.query] * len(passages), passages, instruction=request.instruction, chunk_size=request.chunk_size
    )
    margins = {i: margin for i, margin in enumerate(scores.margins) if margin is not None}
    order = sorted(margins, key=lambda i: -margins[i])[: request.limit]
    names = [item if isinstance(item, str) else item.id for item in given]
    wants_text = request.return_documents or request.return_text
    texts = _texts([passages[i] for i in order], scorer) if wants_text else [None] * len(order)
    results = [_rerank_result(i, names[i], margins[i], text, request) for i, text in zip(order, texts, strict=True)]
    if request.texts is not None:
        return [_text_result(result) for result in results]
    return RerankResponse(
        id=f"rerank-{uuid4().hex}",
        created=int(time.time()),
        model=scorer.model,
        results=results,
        usage=_usage(scores),
        meta=Meta(
            index_version=scorer.index_version,
            query_truncated=scores.query_truncated,
            damaged=[one.doc_id for one in scores.damaged],
        ),
    )


def answer_score(request: ScoreRequest, scorer: Scorer) -> PairsResponse | ScoreResponse:
    """Pairs in the order given, in the dialect that they came in."""
    if request.pairs is not None:
        return _answer_pairs(request, request.pairs, scorer)
    queries, documents = request.columns()
    if len(queries) == 1:
        queries = queries * len(documents)
    raw = [Raw(_document(document).text) for document in documents]
    scores = scorer.score(queries, raw, instruction=request.instruction, chunk_size=request.chunk_size)
    data = [
        ScoreData(index=i, score=_score(margin, request), margin=margin if request.return_margin else None)
        for i, margin in enumerate(scores.require_whole())
    ]
    return ScoreResponse(
        id=f"score-{uuid4().hex}", created=int(time.time()), model=scorer.model, data=data, usage=_usage(scores)
    )


def _answer_pairs(request: ScoreRequest, pairs: list[ScorePair], scorer: Scorer) -> PairsResponse:
    scores = scorer.score(
        [pair.query for pair in pairs],
        [_passage(pair) for pair in pairs],
        instruction=request.instruction,
        chunk_size=request.chunk_size,
    )
    results = [
        PairResult(index=i, id=pair.id, score=_score(margin, request), margin=margin if request.return_margin else None)
        for i, (pair, margin) in enumerate(zip(pairs, scores.require_whole(), strict=True))
    ]
    return PairsResponse(model=scorer.model, results=results, usage=_usage(scores))


def _rerank_result(
    index: int, name: ItemId | None, margin: float, text: str | None, request: RerankRequest
) -> RerankResult:
    score = _score(margin, request)
    return RerankResult(
        index=index,
        relevance_score=score,
        score=score,
        id=name,
        margin=margin if request.return_margin else None,
        document=None if text is None else DocumentText(text=text),
    )


def _text_result(result: RerankResult) -> TextResult:
    text = None if result.document is None else result.document.text
    return TextResult(index=result.index, score=result.score, id=result.id, margin=result.margin, text=text)


def _texts(passages: Sequence[Stored | Raw], scorer: Scorer) -> list[str | None]:
    """The text of each passage; `None` where the index keeps none, or a damaged one."""
    doc_ids = [passage.doc_id for passage in passages if isinstance(passage, Stored)]
    kept = (text if isinstance(text, str) else None for text in scorer.index.find_texts(doc_ids))
    return [passage.text if isinstance(passage, Raw) else next(kept) for passage in passages]


def _document(document: str | Document) -> Document:
    return document if isinstance(document, Document) else Document(text=document)


def _passage(pair: ScorePair) -> Stored | Raw:
    return Raw(_document(pair.document).text) if pair.document is not None else Stored(str(pair.doc_id))


def _score(margin: float, request: RerankRequest | ScoreRequest) -> float:
    return margin if request.raw_scores else score_of(margin)


def _usage(scores: Scores) -> Usage:
    return Usage(
        prompt_tokens=scores.prompt_tokens,
        passage_tokens=scores.passage_tokens,
        total_tokens=scores.prompt_tokens + scores.passage_tokens,
    )
