"""A small application behind our server, whose limits a test may set, and raw bytes to it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread

from starlette.responses import PlainTextResponse
from starlette.routing import Route

from query_service.connections.limits import ConnectionLimits
from query_service.connections.server import Server
from query_service.server import bind
from tests.query_service.middleware.served import size_of_body, small_app

LARGE_BYTES = 32 << 20  # more than the kernel buffers


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    server: Server
    port: int

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A new connection over which these bytes went."""
        connection = socket.create_connection(("127.0.0.1", self.port), 60)
        connection.sendall(sent)
        return connection

    def ask(self, sent: bytes) -> bytes:
        """All that comes back until the server closes."""
        with self.connect(sent) as connection:
            return read_to_the_end(connection)


def read_to_the_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def read_ok(connection: socket.socket) -> bytes:
    """An answer whose body is `ok`, from a connection that stays open."""
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        answer += connection.recv(1 << 16)
    return answer


def make_server(limits: ConnectionLimits) -> Server:
    app = small_app()
    app.routes.append(Route("/v1/rerank", size_of_body, methods=["POST"]))
    app.routes.append(Route("/large", lambda request: PlainTextResponse("x" * LARGE_BYTES)))
    server = Server(app, limits)
    server.config.lifespan = "off"
    return server


@contextmanager
def serving(**limits: float) -> Iterator[Served]:
    """The small application's server, in a thread."""
    server = make_server(ConnectionLimits(**limits))  # type: ignore[arg-type]
    with bind("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Served(server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()
