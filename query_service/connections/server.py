"""uvicorn's server with bounded connections and a drain that resets nobody. Knows nothing of indexes."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from query_service.connections.connection import BoundedConnection
from query_service.connections.limits import ConnectionLimits
from query_service.connections.listener import Listener, turn_away

LOOK_SECONDS = 0.1  # how often connections are looked at
logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves an application on listening sockets until `should_exit`."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits, *, shares_socket: bool = False) -> None:
        """`shares_socket`: other processes go on listening on it when this one stops."""
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",  # by name: uvicorn takes uvloop and httptools where another package brought them
                http="h11",
                ws="none",
                log_config=None,  # standard output stays empty
                access_log=False,
                server_header=False,
                timeout_keep_alive=limits.keep_alive_seconds,
                timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
            )
        )
        self._limits, self._shares_socket = limits, shares_socket
        self._listeners: list[Listener] = []

    def stop(self) -> None:
        """Answer what has come in, and end. May be called by any thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; connections are taken by our own listeners."""
        await super().startup(sockets=[])
        most = self._limits.connections()
        self._listeners = [self._listen(listener, most) for listener in sockets or ()]
        self._watch = asyncio.create_task(self._close_late_connections())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners first; then answer what came in, and let idle clients go."""
        if not self._shares_socket:
            for listener in sockets or ():
                turn_away(listener)
        for taking in self._listeners:
            await taking.close()
        await super().shutdown(sockets)
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch

    def _listen(self, listener: socket.socket, most: int) -> Listener:
        state = self.server_state
        taking = Listener(
            listener,
            state.connections,  # type: ignore[arg-type]  # all of them are of our class
            lambda: BoundedConnection(self.config, state, self.lifespan.state, self._limits),
            most,
        )
        taking.start()
        return taking

    async def _close_late_connections(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedConnection)
                try:
                    connection.close_if_late(loop.time())
                except Exception:  # of one connection: the others are looked at all the same
                    logger.exception("a connection could not be closed in order")
                    connection.give_up()
