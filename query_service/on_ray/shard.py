"""What a replica of a shard's deployment does. A plain class; Ray Serve makes it an actor.

It is the application of `kalm-cache serve --shards`, whose requests come as calls: paths, questions, answers, errors,
ids of requests and traces are those that go over HTTP elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from kalm_cache.index.remote import remote_copy
from kalm_cache.settings import Settings
from query_service.app import create_app
from query_service.engine.service import Service
from query_service.middleware.logs import configure_logging
from query_service.router import messages as m
from query_service.router.transport import Reply
from query_service.server import open_service, prepare_process

HERE = "http://127.0.0.1"  # where nobody listens: requests do not leave the process


class ShardReplica:
    """A service of one shard, in its process. Follows the index by itself, as any service does."""

    def __init__(self, index: str, settings: Settings, threads: int) -> None:
        """Open the shard, and warm up.

        Args:
            index: folder or URL.
            settings: `shards` names the shard.
            threads: of this process, where it computes on CPUs.

        Raises:
            KalmCacheError: the shard cannot be opened.
        """
        configure_logging(settings.log_format, logging.WARNING)
        prepare_process()
        torch.set_num_threads(threads)
        self.service = _open(index, settings)
        _run(self.service.start())
        transport = httpx.ASGITransport(create_app(self.service), raise_app_exceptions=False)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        self._client = httpx.AsyncClient(transport=transport, base_url=HERE, headers=headers)

    async def status(self) -> m.Status:
        """What this service says of itself."""
        return m.STATUS.validate_json((await self._client.get(m.STATUS_PATH)).content)

    async def ask(self, path: str, question: bytes, headers: Mapping[str, str]) -> Reply:
        """See `Transport.ask`."""
        response = await self._client.post(path, content=question, headers=dict(headers))
        return Reply(response.status_code, response.content, response.headers.get("Retry-After"))

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises. Raises `DeviceLostError`."""
        if self.service.lost is not None:
            raise self.service.lost

    def __del__(self) -> None:
        """Called by Ray Serve, when what has begun is answered: close the index."""
        if (service := self.__dict__.pop("service", None)) is not None:
            _run(service.close())


def _open(index: str, settings: Settings) -> Service:
    remote = remote_copy(index, settings, settings.served_shards)
    if remote is None:
        return open_service(Path(index), settings)
    remote.refresh()
    return open_service(remote.reading, settings, refresh=remote.refresh)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: this one may have a loop that runs already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()
