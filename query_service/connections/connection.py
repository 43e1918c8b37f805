"""One connection: uvicorn's protocol with a time limit on all that its client does. Knows nothing of endpoints."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from query_service.connections.framing import StrictConnection
from query_service.connections.limits import ConnectionLimits
from query_service.middleware.refusal import refusal

MAX_HEADER_BYTES = 64 << 10
READ_BYTES = 16 << 10  # parsed at once: other connections get their turn between
LINGER_SECONDS = 2.0  # a refused client that is still writing would not see its answer if we closed at once
FAREWELL_SECONDS = 1.0  # an idle client may be sending its next request just when the service stops


class BoundedConnection(H11Protocol):
    """Closes when its client takes too long over a request's head, its body, or reading the answer.

    The server calls `close_if_late` a few times a second. h11's state of the client says what is waited for: IDLE is a
    head, SEND_BODY a body.
    """

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], limits: ConnectionLimits
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.conn = StrictConnection(MAX_HEADER_BYTES)
        self._application, self.app = self.app, self._answer
        self._limits = limits
        self._stage: tuple[object, object] = (h11.IDLE, None)  # the client's state, and the request it belongs to
        self._since = self.loop.time()  # when the client began what is waited for
        self._received = 0  # bytes of it
        self._unsent_since: float | None = None
        self._unsent_bytes = 0  # the most that waited to be read
        self._draining = self._lingering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's, with reads of a size that does not keep others waiting."""
        with suppress(AttributeError):  # uvloop's transports have no such bound
            transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, and note when a request begins and how much of it came."""
        if self._lingering:
            return
        if self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE:
            self._since, self._received = self.loop.time(), 0
        self._received += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        """As uvicorn's, and note when a head, a body or a request ends."""
        super().handle_events()
        stage = (self.conn.their_state, self.cycle)
        if stage != self._stage:
            self._stage, self._since, self._received = stage, self.loop.time(), 0

    def shutdown(self) -> None:
        """Answer what was begun, and a request that is on its way; then close."""
        self._draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self._unset_keepalive_if_required()
            self._since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the service's one shape; `msg` is what uvicorn says of it."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if status == 431 and self._answers:
            self._refuse(400, f"the line of a chunk's size, or the trailers, are longer than {MAX_HEADER_BYTES} bytes")
        elif status == 431:
            self._refuse(431, f"the request line and headers are longer than {MAX_HEADER_BYTES} bytes")
        else:
            reason = str(error or msg).partition(": b")[0]  # h11 goes on with the bytes
            self._refuse(status, f"not a valid HTTP/1.1 request: {reason}")

    def _should_upgrade(self) -> bool:
        """Whether to speak WebSocket: never. A request for an upgrade is answered as it is (RFC 9110, 7.8)."""
        return False

    @property
    def _answers(self) -> bool:
        """Whether a request is under way; without one, the path that it is for is not known."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits_since(self) -> tuple[int, float] | None:
        """Sorts those that can be given up, the first one first; `None` while an answer is computed.

        Who says nothing goes before who is sending a body or reading an answer; then who does so for longest.
        """
        if self._unsent_since is not None:
            return 1, self._unsent_since
        if self._lingering or self.conn.their_state is h11.IDLE:
            return 0, self._since
        return (1, self._since) if self.conn.their_state is h11.SEND_BODY else None

    def give_up(self) -> None:
        """Close at once, whatever is under way."""
        self.transport.abort()

    def close_if_late(self, now: float) -> None:
        """Close where the client has had its time; `now` as `loop.time()`."""
        self._note_unsent(now)
        if self._unsent_since is not None:
            if now > self._unsent_since + self._limits.transfer_seconds(self._unsent_bytes):
                self.give_up()
        elif not self.transport.is_closing() and self._waits_for_client(now) and now > self._since + self._allowed():
            self._time_out()

    def _note_unsent(self, now: float) -> None:
        size = self.transport.get_write_buffer_size()
        if size == 0:
            self._unsent_since, self._unsent_bytes = None, 0
        else:
            self._unsent_since = self._unsent_since or now
            self._unsent_bytes = max(self._unsent_bytes, size)

    def _waits_for_client(self, now: float) -> bool:
        if self._lingering:
            return True
        if self.conn.their_state is h11.SEND_BODY:
            if self.flow.read_paused:  # it is the application that takes its time
                self._since = now
            return True
        return self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None  # else uvicorn's timer runs

    def _allowed(self) -> float:
        """Seconds for what is waited for."""
        if self._lingering:
            return LINGER_SECONDS
        if self.conn.their_state is h11.IDLE:
            return FAREWELL_SECONDS if self._draining else self._limits.header_seconds
        if self.cycle.response_complete and self._received > self._limits.max_body_bytes:
            return 0.0  # nobody reads it
        return self._limits.transfer_seconds(self._received)

    def _time_out(self) -> None:
        if self._lingering or (self.conn.their_state is h11.IDLE and (self._draining or not self._received)):
            self.transport.close()
        elif self.conn.their_state is h11.IDLE:
            self._refuse(408, f"the headers did not end within {self._limits.header_seconds:g} s")
        else:
            self._refuse(408, f"the body did not come within {self._allowed():.1f} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer in place of the application, then read on for a moment, and close."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.give_up()  # in the middle of an answer, or after it
            return
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        reason = STATUS_PHRASES[status]
        scope: Scope = self.scope if self._answers else {"path": ""}  # type: ignore[assignment]
        response = refusal(scope, status, reason.decode().replace(" ", ""), message)
        head = h11.Response(status_code=status, headers=[*response.raw_headers, CLOSE_HEADER], reason=reason)
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._lingering, self._since = True, self.loop.time()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        try:
            self.transport.write_eof()
        except OSError:  # the client has left
            self.give_up()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application; its answer says so when it is the connection's last, so that no client goes on using it."""
        cycle = self.cycle
        if self._draining:
            cycle.keep_alive = False

        async def say_when_last(message: Message) -> None:
            # who waits for our word before it sends its body may send it or not: what comes next cannot be told
            last = not cycle.keep_alive or cycle.waiting_for_100_continue
            if message["type"] == "http.response.start" and last:
                headers = [*message.get("headers", ())]
                message = {**message, "headers": headers if CLOSE_HEADER in headers else [*headers, CLOSE_HEADER]}
            await send(message)

        await self._application(scope, receive, say_when_last)
