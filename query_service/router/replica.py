"""One service of shards, over HTTP: its connections, what it says of itself, and whether it lives."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import aiohttp
from pydantic import ValidationError

from query_service.answering.errors import DeadlineError
from query_service.router import messages as m
from query_service.router.errors import GenerationLostError, RelayedError, ReplicaFailedError

LOOK_SECONDS = 2.0  # a service that does not say what it is by then does not live
logger = logging.getLogger(__name__)


class Replica:
    """A service at an address. Used on one event loop.

    status: what it said last; `None` = it does not answer, or has no shards.
    """

    def __init__(self, address: str, http: aiohttp.ClientSession) -> None:
        self.address, self._http = address, http
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
            async with asyncio.timeout(LOOK_SECONDS), self._http.get(f"{self.address}{m.STATUS_PATH}") as response:
                content = await response.read()
                if response.status != 200:
                    raise ReplicaFailedError(f"it answers {response.status} to {m.STATUS_PATH}: is it one of shards?")
                status = m.STATUS.validate_json(content)
        except (aiohttp.ClientError, OSError, TimeoutError, ReplicaFailedError, ValidationError) as exc:
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
                return await self._post(path, question, headers)
        except TimeoutError as exc:
            raise DeadlineError(seconds * 1000) from exc
        except asyncio.CancelledError:
            if task not in self._asking and not task.uncancel():  # `_lose` gave it up, and nobody else
                raise ReplicaFailedError(f"{self.address} does not live") from None
            raise
        finally:
            self._asking.discard(task)

    async def _post(self, path: str, question: bytes, headers: Mapping[str, str]) -> bytes:
        try:
            async with self._http.post(f"{self.address}{path}", data=question, headers=headers) as response:
                content = await response.read()
                if response.status == 200:
                    return content
                raise _failure(self.address, response, content)
        except (aiohttp.ClientError, OSError) as exc:
            raise ReplicaFailedError(f"{self.address}: {exc}") from exc

    def _lose(self, problem: str) -> None:
        if problem != self._problem:
            logger.error("%s does not answer: %s", self.address, problem)
        self.status, self._problem = None, problem
        lost, self._asking = self._asking, set()
        for task in lost:
            task.cancel()


def _failure(address: str, response: aiohttp.ClientResponse, content: bytes) -> Exception:
    error = _error_of(content)
    kind, message = str(error.get("type", "")), str(error.get("message", f"{address} answered {response.status}"))
    if kind == "OtherGenerationError":
        return GenerationLostError(message)
    if response.status in (502, 503):
        return ReplicaFailedError(f"{address}: {message}")
    return RelayedError(response.status, kind, message, error.get("ids"), response.headers.get("Retry-After"))


def _error_of(content: bytes) -> dict[str, Any]:
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}
