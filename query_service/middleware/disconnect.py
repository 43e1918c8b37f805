"""A client that leaves takes its request with it: the answer's task is cancelled. Plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """Reads ahead of the application, so that a client that leaves is seen while the answer is made."""

    def __init__(self, app: ASGIApp, on_disconnect: Callable[[], None]) -> None:
        """`on_disconnect` is called for every request that is given up."""
        self._app, self._on_disconnect = app, on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)  # the body is not read faster than it is used
        answered = False

        async def pump() -> None:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                await messages.put(message)

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = answered or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        async def receive_pumped() -> Message:
            if pumping.done() and messages.empty():
                pumping.result()  # raises what `receive` raised
                return {"type": "http.disconnect"}
            getting = asyncio.ensure_future(messages.get())
            await asyncio.wait({getting, pumping}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            getting.cancel()
            return await receive_pumped()

        pumping = asyncio.ensure_future(pump())
        answering = asyncio.ensure_future(self._app(scope, receive_pumped, send_and_note))
        try:
            await asyncio.wait({pumping, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not answered and pumping.exception() is None:
                self._on_disconnect()
                answering.cancel()
            await asyncio.wait({answering})
            if not answering.cancelled():
                answering.result()
        finally:
            for task in (pumping, answering):
                task.cancel()
