"""`POST /search`: first stage and cached rerank of one query, in a time budget where one is given."""

from __future__ import annotations

from dataclasses import asdict

from query_service.answering.context import AnswerContext, Search
from query_service.api.request_values import check_count, prompt_of
from query_service.api.requests import SearchRequest
from query_service.api.responses import Plan, SearchHit, SearchResponse


async def answer_search(request: SearchRequest, context: AnswerContext) -> SearchResponse:
    """The best passages of the index for a query.

    Raises:
        TooManyError: more candidates than the service reranks.
        NoIndexError, UsageError: as `AnswerContext.search`.
    """
    settings, notes = context.settings, context.notes
    k = settings.k if request.k is None else request.k
    check_count(k, "candidates", context)
    weight = request.first_stage_weight
    search = Search(
        prompt=prompt_of(request.query, request.instruction, settings),
        k=k,
        mode=request.first_stage or settings.first_stage,
        chunk_size=request.chunk_size,
        top_n=(settings.top_n if request.top_n is None else request.top_n) or None,
        weight=settings.first_stage_weight_for(context.model.name) if weight is None else weight,
        min_probability=settings.min_probability if request.min_probability is None else request.min_probability,
        filter=request.filter,
        fields=request.fields,
        with_text=request.return_documents,
        budget_ms=request.budget_ms,
    )
    found = await context.search(search)
    return SearchResponse(
        query=request.query,
        query_truncated=found.answer.query_truncated,
        results=[SearchHit(**asdict(result)) for result in found.answer.results],
        timings_ms=found.answer.timings_ms,
        index_version=context.version,
        damaged=found.answer.damaged,
        plan=None if found.plan is None else Plan(**asdict(found.plan)),
        partial=bool(notes.missing_shards),
        missing_shards=notes.missing_shards,
    )
