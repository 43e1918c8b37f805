"""Every failure -> its HTTP code and its error, for a body in the request's dialect. Knows nothing of endpoints."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kalm_cache.errors import (
    DeviceLostError,
    DeviceMemoryError,
    IndexMismatchError,
    KalmCacheError,
    UnknownIdError,
    UsageError,
)
from query_service.answering.errors import (
    BusyError,
    DeadlineError,
    EmptyError,
    EncoderOffError,
    KeyFilterError,
    NoIndexError,
    NotReadyError,
    OtherGenerationError,
    TooManyError,
    UnknownModelError,
)
from query_service.api.problems import SHOWN_PROBLEMS, describe_problems, plain_path
from query_service.api.requests import TOKENS_PER_DOC
from query_service.middleware.refusal import Error, Problem, error_response
from query_service.router.errors import RelayedError, ReplicaFailedError, ShardsMissingError

BAD_REQUESTS = ("json_invalid", TOKENS_PER_DOC)  # types of validation errors that are a 400

# the first that fits, as in a chain of `except`
STATUS: dict[type[KalmCacheError], int] = {
    EncoderOffError: 400,
    NoIndexError: 400,
    UnknownModelError: 400,
    EmptyError: 400,
    TooManyError: 413,
    BusyError: 429,
    OtherGenerationError: 409,
    NotReadyError: 503,
    KeyFilterError: 403,
    ReplicaFailedError: 503,
    ShardsMissingError: 503,
    DeviceLostError: 503,
    DeviceMemoryError: 503,
    DeadlineError: 504,
    UsageError: 422,
    UnknownIdError: 404,
    IndexMismatchError: 409,
    KalmCacheError: 500,
}


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors of every origin in one shape."""
    app.add_exception_handler(KalmCacheError, _on_kalm_cache_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_kalm_cache_error(request: Request, exc: Exception) -> JSONResponse:
    if isinstance(exc, RelayedError):
        headers = {"Retry-After": exc.retry_after} if exc.retry_after else None
        return error_response(
            request.scope, exc.status, Error(type=exc.kind, message=str(exc), ids=exc.ids), headers=headers
        )
    status = next(code for kind, code in STATUS.items() if isinstance(exc, kind))
    headers = {"Retry-After": str(exc.retry_after_seconds)} if isinstance(exc, BusyError) else None
    error = Error(type=type(exc).__name__, message=str(exc), ids=getattr(exc, "ids", None))
    return error_response(request.scope, status, error, headers=headers)


async def _on_invalid_request(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    problems = exc.errors()
    status = 400 if any(problem["type"] in BAD_REQUESTS for problem in problems) else 422
    if problems and problems[0]["type"] == "json_invalid":
        message = f"the body is not JSON: {problems[0]['ctx']['error']}"
        return error_response(request.scope, status, Error(type="MalformedJSON", message=message))
    shown = [Problem(loc=plain_path(one["loc"]), msg=one["msg"], type=one["type"]) for one in problems[:SHOWN_PROBLEMS]]
    return error_response(
        request.scope, status, Error(type="ValidationError", message=describe_problems(problems)), shown
    )


async def _on_http_exception(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    kind = HTTPStatus(exc.status_code).phrase.replace(" ", "")
    return error_response(
        request.scope, exc.status_code, Error(type=kind, message=str(exc.detail)), headers=exc.headers
    )


async def _on_unexpected_error(request: Request, exc: Exception) -> JSONResponse:
    # starlette raises it again after the answer, and the request log writes it down
    message = "the service failed on this request; its log says how"
    return error_response(request.scope, 500, Error(type="InternalServerError", message=message))
