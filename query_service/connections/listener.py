"""A listening socket whose connections are taken one by one, as many as there is room for. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import suppress

from query_service.connections.connection import BoundedConnection
from query_service.connections.limits import SeldomLog

BACKLOG = 2048  # connections that the kernel holds until they are taken
TAKEN_AT_ONCE = 32
RETRY_SECONDS = 0.05
SO_ATTACH_FILTER = 26  # Linux; the module socket does not name it
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
logger = logging.getLogger(__name__)


class Listener:
    """Takes connections for a server, and never more than it may have.

    Where there is no room, the client that has been silent for longest is given up for the new one; where all are being
    answered, the new one waits in the kernel's queue.
    """

    def __init__(
        self,
        listener: socket.socket,
        open_connections: Collection[BoundedConnection],
        make_connection: Callable[[], BoundedConnection],
        most: int,
    ) -> None:
        """`open_connections` is looked at, and changes as they come and go; `most`: of them."""
        self._socket, self._open, self._make, self._most = listener, open_connections, make_connection, most
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._log = SeldomLog(logger)

    def start(self) -> None:
        """Take connections from now on."""
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._resume()

    async def close(self) -> None:
        """Refuse new connections, and take those that the kernel has let in already: nobody is reset."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        while self._take():
            pass
        self._socket.close()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._take_some)

    def _take_some(self) -> None:
        for _ in range(TAKEN_AT_ONCE):
            if len(self._open) + len(self._starting) >= self._most:
                self._make_room(f"{self._most} connections are open, as many as may be")
                return
            if not self._take():
                return

    def _take(self) -> bool:
        """Take one connection. False where none waits or none can be taken."""
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False  # another worker took it
        except OSError as exc:
            if exc.errno in NO_DESCRIPTORS:
                self._make_room(f"a connection cannot be taken ({exc.strerror})")
                return False
            return True  # this one was reset while it waited
        accepted.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, accepted))
        self._starting.add(task)
        task.add_done_callback(self._started)
        return True

    def _started(self, task: asyncio.Task[object]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            self._log.warning(f"a connection could not be started: {failed}")

    def _make_room(self, why: str) -> None:
        """Give up who has been silent for longest, and look again in a moment."""
        waiting = [
            (since, number)
            for number, connection in enumerate(self._open)
            if (since := connection.waits_since) is not None
        ]
        if waiting:
            list(self._open)[min(waiting)[1]].give_up()
        self._log.warning(f"{why}: {'the client silent for longest was given up' if waiting else 'it waits'}")
        self._loop.remove_reader(self._socket)
        self._loop.call_later(0.0 if waiting else RETRY_SECONDS, self._resume)


def turn_away(listener: socket.socket) -> None:
    """Let the kernel answer no new connection on this socket, in any process that has it.

    Call before the queue is emptied and the socket closed: what came in between would be reset. Without effect where
    the system has no such filter.
    """
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF: return 0
    with suppress(OSError):
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
