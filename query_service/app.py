"""`create_app`: a service -> an ASGI application: routes behind middleware. Knows nothing of sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import FastAPI, Request, Response

from kalm_cache import __version__
from query_service.answering.context import AnswerContext
from query_service.answering.model_card import check_model, check_queries
from query_service.answering.service import AnswerService
from query_service.api.body.parsing import bounded_route
from query_service.api.errors import add_error_handlers
from query_service.api.explain import ExplainRequest, ExplainResponse, answer_explain
from query_service.api.requests import InfinityRequest, RerankRequest, ScoreRequest, SearchRequest
from query_service.api.rerank import answer_infinity_rerank, answer_rerank
from query_service.api.responses import (
    InfinityResponse,
    PairsResponse,
    RerankResponse,
    ScoreResponse,
    SearchResponse,
    TextResult,
)
from query_service.api.score import answer_score
from query_service.api.search import answer_search
from query_service.api.shards import shard_routes
from query_service.api.status import (
    Health,
    InfinityHealth,
    InfinityModels,
    Info,
    Models,
    Ready,
    Reloaded,
    answer_health,
    answer_infinity_health,
    answer_infinity_models,
    answer_info,
    answer_models,
    answer_ready,
)
from query_service.engine.service import Service
from query_service.middleware.disconnect import CancelOnDisconnect
from query_service.middleware.docs import add_docs
from query_service.middleware.http.dialects import RERANK_PATHS, SCORE_PATHS, noted_dialect
from query_service.middleware.metrics import CONTENT_TYPE
from query_service.middleware.refusal import ErrorResponse, InfinityError, TeiError
from query_service.middleware.request_log import note_answer, note_query
from query_service.middleware.stack import WrappedFastAPI, middleware_stack
from query_service.page import page_router

STATUSES = (400, 401, 404, 408, 409, 413, 415, 421, 422, 429, 500, 503, 504)
ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorResponse} for code in STATUSES}
TEI_ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorResponse | TeiError} for code in STATUSES}

_Request = TypeVar("_Request", SearchRequest, RerankRequest, InfinityRequest, ScoreRequest, ExplainRequest)
_Response = TypeVar("_Response")


def create_app(service: AnswerService) -> FastAPI:
    """The application over a service, which starts and closes with it.

    Raises:
        UsageError: a key file cannot be read.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = WrappedFastAPI(
        middleware_stack(service.settings, service.metrics, service.tracing),
        title="kalm-cache",
        version=__version__,
        responses=ERRORS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the middleware takes both spellings
    )
    app.router.route_class = bounded_route(service.settings.max_documents)
    add_error_handlers(app)
    add_docs(app)
    app.include_router(page_router())
    _add_status_routes(app, service)
    _add_answer_routes(app, service)
    if isinstance(service, Service) and service.settings.served_shards is not None:
        app.router.routes[:0] = shard_routes(service)  # the first to be looked at

    @app.post("/admin/reload")
    async def reload() -> Reloaded:
        """Serve the newest generation now. Needs an admin key."""
        swapped = await to_thread.run_sync(service.reload)
        return Reloaded(index_version=service.facts().version, swapped=swapped)

    app.add_middleware(CancelOnDisconnect, on_disconnect=lambda: service.metrics.rejected("disconnected"))
    return app


def _add_status_routes(app: FastAPI, service: AnswerService) -> None:
    @app.get("/health")
    async def health() -> Health:
        """The service is alive, and what it serves. Answers while computations run."""
        return answer_health(service)

    @app.get("/ready", response_model_exclude_none=True)
    async def ready() -> Ready:
        """Requests are answered; 503 while the service warms up or stops."""
        return answer_ready(service)

    @app.get("/info")
    async def info() -> Info:
        """What this service is, holds and allows."""
        return answer_info(service)

    @app.get("/v1/models")
    async def models() -> Models:
        """The names that `model` may have."""
        return answer_models(service)

    @app.get("/infinity/health")
    async def infinity_health() -> InfinityHealth:
        """As /health, in Infinity's dialect."""
        return answer_infinity_health()

    @app.get("/infinity/models")
    async def infinity_models() -> InfinityModels:
        """As /v1/models, in Infinity's dialect."""
        return answer_infinity_models(service)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        service.measure()
        return Response(await to_thread.run_sync(service.metrics.render), media_type=CONTENT_TYPE)


def _add_answer_routes(app: FastAPI, service: AnswerService) -> None:
    async def answered(
        request: _Request, response: Response, answer: Callable[[_Request, AnswerContext], Awaitable[_Response]]
    ) -> _Response:
        _check_model_and_queries(service, request)

        async def make(context: AnswerContext) -> _Response:
            if request.instruction is not None:
                await context.check_instruction(request.instruction)
            return await answer(request, context)

        result, context = await service.answer(request.timeout_ms, make)
        _describe(response, context)
        return result

    @app.post("/search")
    async def search(request: SearchRequest, response: Response) -> SearchResponse:
        """The best passages of the index for a query: first stage, then cached rerank."""
        return await answered(request, response, answer_search)

    async def rerank(request: RerankRequest, http: Request, response: Response) -> RerankResponse | list[TextResult]:
        """Passages by falling relevance: stored ones by id, or raw ones by text."""
        return await answered(request, response, partial(answer_rerank, dialect=noted_dialect(http.scope)))

    async def score(request: ScoreRequest, response: Response) -> PairsResponse | ScoreResponse:
        """The relevance of each pair, in the order given."""
        return await answered(request, response, answer_score)

    @app.post("/explain", response_model_exclude_none=True)
    async def explain(request: ExplainRequest, response: Response) -> ExplainResponse:
        """Which parts of a stored passage a query's tokens attended to."""
        return await answered(request, response, answer_explain)

    @app.post("/infinity/rerank", response_model_exclude_none=True, responses={422: {"model": InfinityError}})
    async def infinity_rerank(request: InfinityRequest, response: Response) -> InfinityResponse:
        """As /rerank, with documents as plain strings: set the base URL of clients of Infinity to /infinity."""
        return await answered(request, response, answer_infinity_rerank)

    for path in RERANK_PATHS:
        app.post(path, response_model_exclude_none=True, responses=TEI_ERRORS)(rerank)
    for path in SCORE_PATHS:
        app.post(path, response_model_exclude_none=True)(score)


def _check_model_and_queries(service: AnswerService, request: _Request) -> None:
    """Refuse what this service cannot score; what it can is noted for the log and the span."""
    check_model(request.model, service.names, service.settings)
    check_queries(request.all_queries, service.settings)
    check_queries([request.instruction or ""], service.settings, "an instruction")
    note_query("\n".join(request.all_queries))


def _describe(response: Response, context: AnswerContext) -> None:
    """Note version and timings of an answer: in its headers, and for its log line and span."""
    notes = context.notes
    timings_ms = {stage: round(ms, 2) for stage, ms in notes.finished().items()}
    response.headers["X-Index-Version"] = context.version
    response.headers["Server-Timing"] = ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in timings_ms.items())
    if notes.cache_hits is not None:
        response.headers["X-Cache-Hits"] = str(notes.cache_hits)
    if notes.truncated:  # bare arrays have no other place for it
        response.headers["X-Truncated"] = ",".join(map(str, notes.truncated))
    if notes.unused_fields:
        response.headers["X-Unused-Fields"] = json.dumps(notes.unused_fields)
    if notes.missing_shards:
        response.headers["X-Missing-Shards"] = ",".join(map(str, notes.missing_shards))
    note_answer(context.version, timings_ms)
