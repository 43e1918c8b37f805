"""Bodies that are too large get 413 before anything parses them, and 429 where many are large at once.

A body is in memory until its request is answered: at most `BODIES` of the largest are. Knows nothing of their content.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query_service.middleware.refusal import refusal

LINGER_SECONDS = 2.0
BODIES = 16  # of the largest size in memory at once
SMALL_BYTES = 1 << 16  # a body up to here always finds room


class _RefusedError(Exception):
    """The body went over a limit while it was read."""


class BodyLimit:
    """Refuses bodies above `max_bytes`, by their Content-Length, or as soon as the bytes that came exceed it.

    Of all requests under way it holds `BODIES` times as many.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """`max_bytes`: of the body as it is sent."""
        self._app = app
        self._max_bytes = max_bytes
        self._held_bytes = 0  # of all requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            await refusal(scope, 400, "BadContentLength", "Content-Length is not a number")(scope, receive, send)
        elif len(declared.lstrip("0")) > 18 or int(declared) > self._max_bytes:
            await _refuse(self._too_large(scope), receive, send)
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, answering = 0, False
        refused: Response | None = None

        async def counted() -> Message:
            nonlocal received, refused
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._held_bytes += size
            if not answering and (refused := self._refusal(scope, received)) is not None:
                raise _RefusedError
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal answering
            if refused is None:  # else what the application makes of the failed read is not the answer
                answering = True
                await send(message)

        try:
            await self._app(scope, counted, unless_refused)
        except Exception:
            if refused is None:
                raise
        finally:
            self._held_bytes -= received
        if refused is not None:
            await _refuse(refused, receive, send)

    def _refusal(self, scope: Scope, received: int) -> Response | None:
        if received > self._max_bytes:
            return self._too_large(scope)
        if received > SMALL_BYTES and self._held_bytes > BODIES * self._max_bytes:
            message = "too many large bodies are under way; try again in 1 s, or send fewer documents in a request"
            return refusal(scope, 429, "BusyError", message, {"Connection": "close", "Retry-After": "1"})
        return None

    def _too_large(self, scope: Scope) -> Response:
        message = f"the body is larger than {self._max_bytes} bytes; send fewer documents in a request"
        return refusal(scope, 413, "BodyTooLarge", message, {"Connection": "close"})


async def _refuse(response: Response, receive: Receive, send: Send) -> None:
    """Answer, then throw away what still comes for a moment: a client that is writing would not see the answer."""
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with suppress(TimeoutError):
        await asyncio.wait_for(_drain(receive), LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass
