"""`Transport`: how the services of shards are found and asked. Knows nothing of what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


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

    async def addresses(self) -> list[str]:
        """Where services are now. Raises `UsageError` where that cannot be told."""

    async def status(self, address: str) -> Reply:
        """What the service at an address says of itself: `messages.Status`.

        Raises:
            ReplicaFailedError: it does not answer.
        """

    async def ask(self, address: str, path: str, question: bytes, headers: Mapping[str, str]) -> Reply:
        """A question; cancelled, it is taken back.

        Raises:
            ReplicaFailedError: the service does not answer.
        """
