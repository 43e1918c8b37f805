"""A real service on a loopback port, with the encoder, and what its answers must be: the reranker's own.

Libraries that report home are told not to before they are imported.
"""

from __future__ import annotations

import os

os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "NO_PROXY": "127.0.0.1",
}

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kalm_cache.reranker import KaLMReranker, Ranked
from tests.query_service.conftest import (  # noqa: F401  # fixtures
    CORPUS,
    MAX_LENGTH,
    build,
    embedder_folder,
    index_folder,
    service,
    serving,
)

QUERY = "Where do bees dance?"
TEXTS = [
    "In the morning bees carry pollen to the hive.",
    "The capital of China is Beijing.",
    "The last ferry leaves at nine.",
    "中国的首都是北京。",
]
KEY = "a-key"


@pytest.fixture(scope="session")
def url(service: httpx.Client) -> str:  # noqa: F811
    """Where the service is."""
    return str(service.base_url)


@pytest.fixture(scope="session")
def model(service: httpx.Client) -> str:  # noqa: F811
    """The name under which it serves its model."""
    return str(service.get("/v1/models").json()["data"][0]["id"])


@pytest.fixture(scope="session")
def drop_in(index_folder: Path) -> Iterator[str]:  # noqa: F811
    """A service that takes every model name, for clients whose name cannot be changed, and asks for a key."""
    with serving(index_folder, with_encoder=True, served_model_name="*", api_keys=KEY) as client:
        yield str(client.base_url)


@pytest.fixture(scope="session")
def ranking(mini_folder: Path) -> list[Ranked]:
    """What every client must get for `QUERY` and `TEXTS`: made by the reranker, in this process."""
    reranker = KaLMReranker(str(mini_folder), device="cpu", max_length=MAX_LENGTH)
    return reranker.rank(QUERY, TEXTS, return_margin=True)


@pytest.fixture(scope="session")
def order(ranking: list[Ranked]) -> list[int]:
    """Positions in `TEXTS`, best first."""
    return [one["corpus_id"] for one in ranking]


@pytest.fixture(scope="session")
def scores(ranking: list[Ranked]) -> list[object]:
    """P(yes), best first, equal but for rounding in batches of other sizes."""
    return [pytest.approx(one["score"], abs=1e-4) for one in ranking]


@pytest.fixture(scope="session")
def margins(ranking: list[Ranked]) -> list[object]:
    """yes_logit − no_logit, best first."""
    return [pytest.approx(one["margin"], abs=1e-4) for one in ranking]
