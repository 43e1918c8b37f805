"""Every failure -> its HTTP code and a JSON body, in the words of the request's dialect. Knows nothing of endpoints.

Text Embeddings Inference has `error` and `error_type`, both strings. Infinity's `detail` of a 422 is a list of
problems. All others get `{"error": {"type", "message"}, "detail"}`, with `code` in vLLM's, Infinity's and Cohere's.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kalm_cache.errors import IndexMismatchError, KalmCacheError, UnknownIdError, UsageError
from query_service.api.dialects import noted_dialect
from query_service.api.problems import SHOWN_PROBLEMS, describe_problems, plain_path
from query_service.api.requests import TOKENS_PER_DOC
from query_service.api.responses import InfinityError, Problem, TeiError, TeiErrorType
from query_service.engine.errors import (
    BusyError,
    DeadlineError,
    EmptyError,
    EncoderOffError,
    NoIndexError,
    NotReadyError,
    TooManyError,
    UnknownModelError,
)
from query_service.middleware.refusal import Error, ErrorResponse

BAD_REQUESTS = ("json_invalid", TOKENS_PER_DOC)  # types of validation errors that are a 400

# the first that fits, as in a chain of `except`
STATUS: dict[type[KalmCacheError], int] = {
    EncoderOffError: 400,
    NoIndexError: 400,
    UnknownModelError: 400,
    EmptyError: 400,
    TooManyError: 413,
    BusyError: 429,
    NotReadyError: 503,
    DeadlineError: 504,
    UsageError: 422,
    UnknownIdError: 404,
    IndexMismatchError: 409,
    KalmCacheError: 500,
}
TEI_TYPES: dict[int, TeiErrorType] = {429: "Overloaded", 500: "Backend", 503: "Unhealthy", 504: "Backend"}


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors of every origin in one shape."""
    app.add_exception_handler(KalmCacheError, _on_kalm_cache_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_kalm_cache_error(request: Request, exc: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(exc, kind))
    headers = {"Retry-After": str(exc.retry_after_seconds)} if isinstance(exc, BusyError) else None
    error = Error(type=type(exc).__name__, message=str(exc), ids=getattr(exc, "ids", None))
    return _answer(request, status, error, headers=headers)


async def _on_invalid_request(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    problems = exc.errors()
    status = 400 if any(problem["type"] in BAD_REQUESTS for problem in problems) else 422
    if problems and problems[0]["type"] == "json_invalid":
        message = f"the body is not JSON: {problems[0]['ctx']['error']}"
        return _answer(request, status, Error(type="MalformedJSON", message=message))
    shown = [Problem(loc=plain_path(one["loc"]), msg=one["msg"], type=one["type"]) for one in problems[:SHOWN_PROBLEMS]]
    return _answer(request, status, Error(type="ValidationError", message=describe_problems(problems)), shown)


async def _on_http_exception(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    kind = HTTPStatus(exc.status_code).phrase.replace(" ", "")
    return _answer(request, exc.status_code, Error(type=kind, message=str(exc.detail)), headers=exc.headers)


async def _on_unexpected_error(request: Request, exc: Exception) -> JSONResponse:
    # starlette raises it again after the answer, and the request log writes it down
    message = "the service failed on this request; its log says how"
    return _answer(request, 500, Error(type="InternalServerError", message=message))


def _answer(
    request: Request, status: int, error: Error, problems: Sequence[Problem] = (), *, headers: Any = None
) -> JSONResponse:
    """The error in the words of the request's dialect, where that is known."""
    dialect = noted_dialect(request)
    coded = error.model_copy(update={"code": status})
    body: ErrorResponse | TeiError | InfinityError
    match dialect:
        case "tei":
            body = TeiError(error=error.message, error_type=_tei_type(status, error.type))
        case "infinity" if status == 422:
            own = Problem(loc=["body"], msg=error.message, type=error.type)
            body = InfinityError(error=coded, detail=list(problems) or [own])
        case "vllm" | "infinity":
            body = ErrorResponse(error=coded, detail=error.message)
        case "cohere-1" | "cohere-2":
            body = ErrorResponse(error=coded, detail=error.message, message=error.message)
        case _:
            body = ErrorResponse(error=error, detail=error.message)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)


def _tei_type(status: int, kind: str) -> TeiErrorType:
    return "Empty" if kind == EmptyError.__name__ else TEI_TYPES.get(status, "Validation")
