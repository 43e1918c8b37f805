"""Every failure -> one JSON body, `{"error": {"type", "message"}}`, and its HTTP code. A deadline: 504, busy: 429."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kalm_cache.errors import IndexMismatchError, KalmCacheError, UnknownIdError, UsageError
from query_service.engine.errors import (
    BusyError,
    DeadlineError,
    EncoderOffError,
    NotReadyError,
    TooManyError,
    UnknownModelError,
)
from query_service.middleware.refusal import Error, ErrorResponse

SHOWN_PROBLEMS = 5


# the first that fits, as in a chain of `except`
STATUS: dict[type[KalmCacheError], int] = {
    EncoderOffError: 400,
    UnknownModelError: 400,
    TooManyError: 413,
    BusyError: 429,
    NotReadyError: 503,
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


async def _on_kalm_cache_error(_: Request, exc: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(exc, kind))
    headers = {"Retry-After": str(exc.retry_after_seconds)} if isinstance(exc, BusyError) else None
    return _answer(status, type(exc).__name__, str(exc), ids=getattr(exc, "ids", None), headers=headers)


async def _on_invalid_request(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    problems = exc.errors()
    if problems and problems[0]["type"] == "json_invalid":
        return _answer(400, "MalformedJSON", f"the body is not JSON: {problems[0]['ctx']['error']}")
    return _answer(422, "ValidationError", _describe(problems))


async def _on_http_exception(_: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)
    kind = HTTPStatus(exc.status_code).phrase.replace(" ", "")
    return _answer(exc.status_code, kind, str(exc.detail), headers=exc.headers)


async def _on_unexpected_error(_: Request, exc: Exception) -> JSONResponse:
    # starlette raises it again after the answer, and the request log writes it down
    return _answer(500, "InternalServerError", "the service failed on this request; its log says how")


def _answer(status: int, kind: str, message: str, *, ids: list[str] | None = None, headers: Any = None) -> JSONResponse:
    body = ErrorResponse(error=Error(type=kind, message=message, ids=ids), detail=message)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)


def _describe(problems: Sequence[Any]) -> str:
    """`field: what is wrong; …`. Never the value itself: it may be large, or no valid Unicode."""
    shown = [_problem(problem["loc"][1:], problem["msg"]) for problem in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - len(shown)
    return "; ".join((*shown, f"and {more} more") if more else shown)


def _problem(where: Sequence[str | int], message: str) -> str:
    return f"{'.'.join(map(str, where))}: {message}" if where else message
