"""Request ids, and one log line a request. Never logs headers, bodies or query strings; queries only on request."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query_service.middleware.paths import path_template

TRACE = ("traceparent", "tracestate")
CLIENT_LEFT = 499  # no answer was sent; the number is nginx's
logger = logging.getLogger(__name__)
_VALID_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class RequestNotes:
    """What is known of the request under way: its id, and what its endpoint notes for the log line and the span.

    timings_ms: by stage, as the answer's `Server-Timing` header has them. trace: the headers that name the caller's
    span (W3C Trace Context).
    """

    request_id: str
    query: str | None = None
    index_version: str | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    trace: Mapping[str, str] = field(default_factory=dict)


_current: ContextVar[RequestNotes | None] = ContextVar("request_notes", default=None)


def current_notes() -> RequestNotes | None:
    """The notes of the request that this code runs for; `None` outside of one."""
    return _current.get()


def current_request_id() -> str | None:
    """The id of the request that this code runs for; `None` outside of one."""
    notes = _current.get()
    return None if notes is None else notes.request_id


def note_query(query: str) -> None:
    """Note the request's query. The log line has it only under `log_queries`."""
    if (notes := _current.get()) is not None:
        notes.query = query


def note_answer(index_version: str, timings_ms: Mapping[str, float]) -> None:
    """Note which generation answered the request, and where its milliseconds went."""
    if (notes := _current.get()) is not None:
        notes.index_version, notes.timings_ms = index_version, timings_ms


class RequestLog:
    """Gives each request an id, answers with it, and logs one line when the answer is sent. The outermost part.

    The id is the client's `X-Request-Id` if that is short and plain, else a new one.
    """

    def __init__(self, app: ASGIApp, *, log_queries: bool = False) -> None:
        """`log_queries`: put the query of `note_query` into the line."""
        self._app = app
        self._log_queries = log_queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        notes = RequestNotes(_request_id(scope), trace={name: headers[name] for name in TRACE if name in headers})
        answer = _Answer(send, notes.request_id)
        token = _current.set(notes)
        started = time.perf_counter()
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            if not answer.complete:
                raise
            # answered by a 500: the server would log no more, but close the connection under the client's next request
            logger.exception("unexpected error")
        finally:
            self._log(scope, answer, notes, (time.perf_counter() - started) * 1000)
        _current.reset(token)  # not after an error that goes on: the server logs it next, and that line needs the id

    def _log(self, scope: Scope, answer: _Answer, notes: RequestNotes, ms: float) -> None:
        fields: dict[str, Any] = {
            "method": scope["method"],
            "path": path_template(scope),
            "status": answer.status,
            "ms": round(ms, 2),
            "bytes": answer.bytes,
        }
        if notes.index_version:
            fields["index_version"] = notes.index_version
        if notes.timings_ms:
            fields["timings_ms"] = dict(notes.timings_ms)
        if self._log_queries and notes.query is not None:
            fields["query"] = notes.query
        logger.info(_line(fields), extra={"fields": fields})


@dataclass(slots=True)
class _Answer:
    """Passes an answer on under the request's id, and remembers what the log line needs."""

    to: Send
    request_id: str
    status: int = CLIENT_LEFT
    bytes: int = 0
    complete: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Request-Id"] = self.request_id
            self.status = message["status"]
        self.bytes += len(message.get("body", b""))
        await self.to(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _VALID_ID.fullmatch(given) else uuid4().hex


def _line(fields: Mapping[str, Any]) -> str:
    stages = " ".join(f"{name}={ms:g}" for name, ms in fields.get("timings_ms", {}).items())
    query = json.dumps(fields["query"], ensure_ascii=False) if "query" in fields else ""
    head = f"{fields['method']} {fields['path']} {fields['status']} {fields['ms']:.1f} ms {fields['bytes']} B"
    return " ".join(part for part in (head, fields.get("index_version", ""), stages, query) if part)
