"""`create_app`: an open index -> an ASGI application. Knows nothing of sockets or signals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI

from kalm_cache import __version__
from kalm_cache.index import PassageIndex
from kalm_cache.settings import Settings
from query_service.answers import answer_health, answer_rerank, answer_score, answer_search
from query_service.documents import DocumentEncoder
from query_service.errors import add_error_handlers
from query_service.requests import RerankRequest, ScoreRequest, SearchRequest
from query_service.responses import (
    ErrorResponse,
    Health,
    PairsResponse,
    RerankResponse,
    ScoreResponse,
    SearchResponse,
    TextResult,
)
from query_service.scoring import Scorer

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
SCORE_PATHS = ("/score", "/v1/score")
ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorResponse} for code in (400, 404, 409, 422, 500)}

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def create_app(
    index: PassageIndex,
    documents: DocumentEncoder | None,
    settings: Settings,
) -> FastAPI:
    """The service over an open index, which the caller closes.

    Args:
        index: what is searched.
        documents: encodes raw documents; `None` = stored passages only.
        settings: what holds where a request does not say: `k, top_n, first_stage, instruction, system_instruction`.
    """
    scorer = Scorer(index, documents, settings)
    # One computation at a time, in the order of arrival: each already uses every core, or the whole device, and
    # those that wait hold no thread.
    limiter = CapacityLimiter(1)

    async def compute(answer: Callable[[_Request, Scorer], _Response], request: _Request) -> _Response:
        return await to_thread.run_sync(answer, request, scorer, limiter=limiter)

    app = FastAPI(title="kalm-cache", version=__version__, responses=ERRORS)
    add_error_handlers(app)

    @app.get("/health")
    async def health() -> Health:
        """The service is alive, and what it serves. Answers while computations run."""
        return answer_health(scorer)

    @app.post("/search")
    async def search(request: SearchRequest) -> SearchResponse:
        """The best passages of the index for a query."""
        return await compute(answer_search, request)

    async def rerank(request: RerankRequest) -> RerankResponse | list[TextResult]:
        """Passages by falling relevance: stored ones by id, or raw ones by text."""
        return await compute(answer_rerank, request)

    async def score(request: ScoreRequest) -> PairsResponse | ScoreResponse:
        """The relevance of each pair, in the order given."""
        return await compute(answer_score, request)

    for path in RERANK_PATHS:
        app.post(path, response_model_exclude_none=True)(rerank)
    for path in SCORE_PATHS:
        app.post(path, response_model_exclude_none=True)(score)
    return app
