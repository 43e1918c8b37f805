"""`POST /search`: first stage and cached rerank of one query, in a time budget where one is given."""

from __future__ import annotations

from dataclasses import asdict, replace

from kalm_cache.first_stage import Mode
from kalm_cache.scoring.pipeline import RankingRules, rerank
from query_service.api.request_values import check_count, prompt_of
from query_service.api.requests import SearchRequest
from query_service.api.responses import Plan, SearchHit, SearchResponse
from query_service.engine.request_context import RequestContext
from query_service.engine.time_budget import TimeBudget


async def answer_search(request: SearchRequest, context: RequestContext) -> SearchResponse:
    """The best passages of the index for a query.

    Raises:
        TooManyError: more candidates than the service reranks.
        UsageError: a first stage that was not built; a chunk size that is no multiple of the stored one.
    """
    settings, index = context.settings, context.index
    k = settings.k if request.k is None else request.k
    check_count(k, "candidates", context)
    mode: Mode | None = request.first_stage or settings.first_stage
    weight = request.first_stage_weight
    if weight is None:
        weight = settings.first_stage_weight_for(index.generation.manifest.model)
    top_n = (settings.top_n if request.top_n is None else request.top_n) or None
    budget = None if request.budget_ms is None else TimeBudget(context, request.budget_ms)

    shortlist = await context.read("first_stage", lambda: index.find(request.query, k, mode))
    options = RankingRules(request.chunk_size, top_n, weight, index.find_texts if request.return_documents else None)
    if budget is not None:
        options = replace(options, shorten=budget.shorten)
    prompt = prompt_of(request.query, request.instruction, settings)
    answer = await rerank(context, index.stored, prompt, shortlist, options)
    context.counts.queries_cut += answer.query_truncated
    return SearchResponse(
        query=request.query,
        query_truncated=answer.query_truncated,
        results=[SearchHit(**asdict(result)) for result in answer.results],
        timings_ms=answer.timings_ms,
        index_version=context.served.version,
        damaged=answer.damaged,
        plan=Plan(**asdict(budget.plan)) if budget and budget.plan else None,
    )
