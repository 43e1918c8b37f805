"""One index, as an index, behind a service and as the reranker that built it; requests to the service are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker
from tests.query_service.conftest import (  # noqa: F401  # fixtures
    CORPUS,
    MAX_LENGTH,
    build,
    embedder_folder,
    index,
    index_folder,
    service,
)

QUERY = "Where do bees dance?"
IDS = ["s0", "l3", "s5", "ü/北"]
Sent = list[tuple[str, Any]]


@pytest.fixture(scope="session")
def unpooled(mini_folder: Any) -> KaLMReranker:
    """The model that built the index, at the pooling ratio of the index."""
    return KaLMReranker(str(mini_folder), device="cpu", max_length=MAX_LENGTH)


@pytest.fixture
def sent() -> Sent:
    """Path and body of every request that `client` and `async_client` sent."""
    return []


@pytest.fixture
def client(service: httpx.Client, sent: Sent) -> Iterator[Client]:  # noqa: F811
    def keep(request: httpx.Request) -> None:
        sent.append((request.url.path, json.loads(request.content)))

    http = httpx.Client(base_url=service.base_url, timeout=60, event_hooks={"request": [keep]})
    with Client(http=http) as connected:
        yield connected


@pytest.fixture
def async_client(service: httpx.Client, sent: Sent) -> AsyncClient:  # noqa: F811
    async def keep(request: httpx.Request) -> None:
        sent.append((request.url.path, json.loads(request.content)))

    return AsyncClient(http=httpx.AsyncClient(base_url=service.base_url, timeout=60, event_hooks={"request": [keep]}))
