"""An error → its response, in the shape of the request's dialect. Knows nothing of why.

Text Embeddings Inference has `error` and `error_type`, both strings. Infinity's `detail` of a 422 is a list of
problems. All others get `{"error": {"type", "message"}, "detail"}`, with `code` in vLLM's, Infinity's and Cohere's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse
from starlette.types import Scope

from query_service.middleware.http.dialects import Dialect, noted_dialect


class Error(BaseModel):
    """What went wrong; `ids` lists the unknown ones of a 404, `code` is the status, where a dialect has it here."""

    type: str
    message: str
    code: int | None = None
    ids: list[str] | None = None


class ErrorResponse(BaseModel):
    """The body of every answer that is not 200; `detail` and `message` repeat the message where other clients look."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"error": {"type": "UsageError", "message": "chunk size 3 was asked for, but …"}, "detail": "…"}
            ]
        }
    )
    error: Error
    detail: str
    message: str | None = None


TeiErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class TeiError(BaseModel):
    """A failure, as Text Embeddings Inference has it."""

    error: str
    error_type: TeiErrorType


class Problem(BaseModel):
    """What is wrong with one field, as FastAPI has it."""

    loc: list[str | int]
    msg: str
    type: str


class InfinityError(BaseModel):
    """A 422 for clients of Infinity, which read a list of problems."""

    error: Error
    detail: list[Problem]


TEI_TYPES: dict[str | int, TeiErrorType] = {  # by type or status; else it is "Validation"
    "EmptyError": "Empty",
    429: "Overloaded",
    500: "Backend",
    503: "Unhealthy",
    504: "Backend",
}


def refusal(
    scope: Scope, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error of a request whose body was not read, as a response that middleware can send."""
    return error_response(scope, status, Error(type=kind, message=message), headers=headers)


def error_response(
    scope: Scope,
    status: int,
    error: Error,
    problems: Sequence[Problem] = (),
    *,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error in the words of the request's dialect, as far as it is known; `problems` are for lists of them."""
    body = _body(noted_dialect(scope), status, error, problems)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)


def _body(
    dialect: Dialect, status: int, error: Error, problems: Sequence[Problem]
) -> ErrorResponse | TeiError | InfinityError:
    coded = error.model_copy(update={"code": status})
    match dialect:
        case "tei":
            kind = TEI_TYPES.get(error.type) or TEI_TYPES.get(status, "Validation")
            return TeiError(error=error.message, error_type=kind)
        case "infinity" if status == 422:
            own = Problem(loc=["body"], msg=error.message, type=error.type)
            return InfinityError(error=coded, detail=list(problems) or [own])
        case "vllm" | "infinity":
            return ErrorResponse(error=coded, detail=error.message)
        case "cohere-1" | "cohere-2":
            return ErrorResponse(error=coded, detail=error.message, message=error.message)
    return ErrorResponse(error=error, detail=error.message)
