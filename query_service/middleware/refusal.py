"""The one shape of errors, and a response of it for requests that never reach an endpoint. Knows nothing of why."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse


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


def refusal(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`{"error": {"type", "message"}, "detail"}` as a response that middleware can send."""
    body = ErrorResponse(error=Error(type=kind, message=message), detail=message)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)
