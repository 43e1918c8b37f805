"""The answer to a request that never reaches an endpoint, in the one shape of errors. Knows nothing of why."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from query_service.api.responses import Error, ErrorResponse


def refusal(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`{"error": {"type", "message"}, "detail"}` as a response that middleware can send."""
    body = ErrorResponse(error=Error(type=kind, message=message), detail=message)
    return JSONResponse(body.model_dump(exclude_none=True), status, headers)
