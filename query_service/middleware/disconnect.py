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
        answered = False

        async def send_and_note(message: Message) -> None:
            nonlocal answered
            answered = answered or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        ahead = _ReadAhead(receive)
        answering = asyncio.ensure_future(self._app(scope, ahead.receive, send_and_note))
        try:
            await asyncio.wait({ahead.reading, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not answered and ahead.reading.exception() is None:
                self._on_disconnect()
                answering.cancel()
            await asyncio.wait({answering})
            if not answering.cancelled():
                answering.result()
        finally:
            for task in (ahead.reading, answering):
                task.cancel()


class _ReadAhead:
    """Receives one message before it is asked for; `reading` ends when the client has left."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)  # bodies are not read faster than used
        self.reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            await self._messages.put(message)

    async def receive(self) -> Message:
        """As ASGI's `receive`."""
        getting = asyncio.ensure_future(self._messages.get())
        try:
            await asyncio.wait({getting, self.reading}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()  # also where the application is cancelled while it waits
        if not self._messages.empty():
            return self._messages.get_nowait()
        self.reading.result()  # raises what `receive` raised
        return {"type": "http.disconnect"}
