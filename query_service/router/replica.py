"""One service of shards: what it says of itself, whether it lives, and what it is asked. Knows nothing of networks."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from query_service.answering.errors import DeadlineError
from query_service.router import messages as m
from query_service.router.errors import GenerationLostError, RelayedError, ReplicaFailedError
from query_service.router.transport import Reply, Transport

LOOK_SECONDS = 2.0  # a service that does not say what it is by then does not live
logger = logging.getLogger(__name__)


class Replica:
    """A service at an address. Used on one event loop.

    status: what it said last; `None` = it does not answer, or has no shards.
    """

    def __init__(self, address: str, transport: Transport) -> None:
        self.address, self._transport = address, transport
        self.status: m.Status | None = None
        self._asking: set[asyncio.Task[Any]] = set()
        self._problem = ""

    @property
    def asked(self) -> int:
        """Questions under way."""
        return len(self._asking)

    async def look(self) -> None:
        """Ask what it is. Where it does not say, the questions that it has are given up: others may answer these."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                status = await self._transport.status(self.address)
        except (TimeoutError, ReplicaFailedError) as exc:
            self._lose(str(exc) or type(exc).__name__)
            return
        if self.status is None:
            logger.info("%s has shards %s of %d", self.address, ",".join(map(str, status.numbers)), status.count)
        self.status, self._problem = status, ""

    async def ask(self, path: str, question: bytes, seconds: float, headers: Mapping[str, str]) -> bytes:
        """The answer to a question, awaited in a task that may be cancelled for it.

        Raises:
            ReplicaFailedError: it does not live, or cannot answer now.
            GenerationLostError: the generation that was asked for is not open there.
            DeadlineError: it did not answer in `seconds`.
            RelayedError: it refuses the question.
        """
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            async with asyncio.timeout(seconds):
                return await self._send(path, question, headers)
        except TimeoutError as exc:
            raise DeadlineError(seconds * 1000) from exc
        except asyncio.CancelledError:
            if task not in self._asking and not task.uncancel():  # `_lose` gave it up, and nobody else
                raise ReplicaFailedError(f"{self.address} does not live") from None
            raise
        finally:
            self._asking.discard(task)

    async def _send(self, path: str, question: bytes, headers: Mapping[str, str]) -> bytes:
        reply = await self._transport.ask(self.address, path, question, headers)
        if reply.status != 200:
            raise _failure(self.address, reply)
        return reply.content

    def _lose(self, problem: str) -> None:
        if problem != self._problem:
            logger.error("%s does not answer: %s", self.address, problem)
        self.status, self._problem = None, problem
        lost, self._asking = self._asking, set()
        for task in lost:
            task.cancel()


def _failure(address: str, reply: Reply) -> Exception:
    error = _error_of(reply.content)
    kind, message = str(error.get("type", "")), str(error.get("message", f"{address} answered {reply.status}"))
    if kind == "OtherGenerationError":
        return GenerationLostError(message)
    if reply.status in (502, 503):
        return ReplicaFailedError(f"{address}: {message}")
    return RelayedError(reply.status, kind, message, error.get("ids"), reply.retry_after)


def _error_of(content: bytes) -> dict[str, Any]:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
