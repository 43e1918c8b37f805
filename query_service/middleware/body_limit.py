"""Bodies that are too large get 413 before anything parses them. Knows nothing of what bodies hold."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query_service.middleware.refusal import refusal

LINGER_SECONDS = 2.0


class _TooLargeError(Exception):
    """The body went over the limit while it was read."""


class BodyLimit:
    """Refuses bodies above `max_bytes`, by their Content-Length, or as soon as the bytes that came exceed it."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """`max_bytes`: of the body as it is sent."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            await refusal(400, "BadContentLength", "Content-Length is not a number")(scope, receive, send)
        elif len(declared.lstrip("0")) > 18 or int(declared) > self._max_bytes:
            await self._refuse(scope, receive, send)
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, too_large, answering = 0, False, False

        async def counted() -> Message:
            nonlocal received, too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes and not answering:
                too_large = True
                raise _TooLargeError
            return message

        async def unless_too_large(message: Message) -> None:
            nonlocal answering
            if not too_large:  # else what the application makes of the failed read is not the answer
                answering = True
                await send(message)

        try:
            await self._app(scope, counted, unless_too_large)
        except Exception:
            if not too_large:
                raise
        if too_large:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, then throw away what still comes for a moment: a client that is writing would not see the answer."""
        message = f"the body is larger than {self._max_bytes} bytes; send fewer documents in a request"
        response = refusal(413, "BodyTooLarge", message, {"Connection": "close"})
        await send({"type": "http.response.start", "status": 413, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with suppress(TimeoutError):
            await asyncio.wait_for(_drain(receive), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass
