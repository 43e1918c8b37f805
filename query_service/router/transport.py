"""`Transport`: how the services of shards are found and asked. Knows nothing of what becomes of their answers."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol

from query_service.router.messages import Status


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service answers: an HTTP status, a body, and its `Retry-After`, whatever carried them."""

    status: int
    content: bytes
    retry_after: str | None = None


class Transport(Protocol):
    """Used on one event loop; `open` it, `close` it."""

    async def open(self) -> None:
        """Begin."""

    async def close(self) -> None:
        """Leave the services."""

    def addresses(self) -> Awaitable[list[str]]:
        """Where services are now. Raises `UsageError` where that cannot be told."""

    async def status(self, address: str) -> Status:
        """What the service at an address says of itself.

        Raises:
            ReplicaFailedError: it does not answer, or is none of shards.
        """

    async def ask(self, address: str, path: str, question: bytes, headers: Mapping[str, str]) -> Reply:
        """A question; cancelled, it is taken back.

        Raises:
            ReplicaFailedError: the service does not answer.
        """
