"""How many connections there may be, and how long a client may take. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kalm_cache.settings import Settings

SLOWEST_BYTES_PER_SECOND = 16 << 10  # each such part of a body earns a second more
SPARE_DESCRIPTORS = 32  # of the limit, for files that are opened later: a new generation beside the old one
FEWEST_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a client may take of the service.

    header_seconds: for a request line and its headers, from their first byte or from a new connection.
    body_seconds: for a body, or for reading an answer; and a second more for each 16 KiB.
    keep_alive_seconds: between two requests.
    drain_seconds: how long a stopping service waits for what it has begun.
    max_connections: open ones of a process; fewer where the limit of descriptors asks for it.
    max_body_bytes: of a body that nobody reads; what more comes ends the connection.
    """

    header_seconds: float = 10.0
    body_seconds: float = 30.0
    keep_alive_seconds: int = 75  # longer than the usual pool of a client, so that it meets no closing connection
    drain_seconds: float = 30.0
    max_connections: int = 1000
    max_body_bytes: int = 16 << 20

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """As the settings say."""
        return cls(
            header_seconds=settings.header_seconds,
            body_seconds=settings.body_seconds,
            drain_seconds=settings.drain_seconds,
            max_connections=settings.max_connections,
            max_body_bytes=settings.max_body_bytes,
        )

    def transfer_seconds(self, size_bytes: int) -> float:
        """How long so many bytes may take, in either direction."""
        return self.body_seconds + size_bytes / SLOWEST_BYTES_PER_SECOND

    def connections(self) -> int:
        """`max_connections`, or as many as this process has descriptors for beside its files."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return self.max_connections
        free = soft - len(list(Path("/dev/fd").iterdir())) - max(SPARE_DESCRIPTORS, soft // 8)
        return min(self.max_connections, max(FEWEST_CONNECTIONS, free))


class SeldomLog:
    """A warning that may come thousands of times a second: at most one line in `seconds`, with how often it came."""

    def __init__(self, logger: logging.Logger, seconds: float = 10.0) -> None:
        self._logger, self._seconds = logger, seconds
        self._next, self._untold = 0.0, 0

    def warning(self, message: str) -> None:
        """Log it, or count it for the next line."""
        self._untold += 1
        if (now := time.monotonic()) >= self._next:
            self._logger.warning("%s (%d times since the last such line)", message, self._untold)
            self._next, self._untold = now + self._seconds, 0
