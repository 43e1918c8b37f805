"""A sharded index, its unsharded twin, and services of shards behind a router, all real and in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from kalm_cache.scoring import batching
from kalm_cache.settings import Settings, load_settings
from query_service.app import create_app
from query_service.router.addresses import addresses_in_file
from query_service.router.over_http import OverHttp
from query_service.router.service import Router
from tests import indexes
from tests.query_service.conftest import CORPUS, MAX_LENGTH, running, serving

SHARDS = 4


@pytest.fixture(scope="package", autouse=True)
def one_by_one() -> Iterator[None]:
    """Pairs are decoded one by one: in other company a product adds up otherwise, on some processors by over 1e-6."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "DECODE_BATCH", 1)
        yield


@pytest.fixture(scope="package")
def settings(mini_folder: Path, embedder_folder: Path) -> Settings:
    return load_settings(model=str(mini_folder), embedder=str(embedder_folder), device="cpu", max_length=MAX_LENGTH)


@pytest.fixture(scope="package")
def sharded(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in four shards."""
    folder = tmp_path_factory.mktemp("sharded")
    indexes.build(folder, settings, CORPUS, shards=SHARDS)
    return folder


@contextmanager
def routing(addresses: list[str], folder: Path, **given: object) -> Iterator[httpx.Client]:
    """A client of a router to services at these addresses."""
    file = folder / "shards.txt"
    file.write_text("".join(f"{address}\n" for address in addresses))
    settings = load_settings(**given)
    transport = OverHttp(addresses_in_file(file), settings.shard_api_key.get_secret_value())
    with running(create_app(Router(transport, settings))) as client:
        yield client


@pytest.fixture(scope="package")
def whole(sharded: Path) -> Iterator[httpx.Client]:
    """One service over all shards: what a router's answers are compared with."""
    with serving(sharded, with_encoder=True) as client:
        yield client


@pytest.fixture(scope="package")
def router(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A router to three services: of shard 0, of 1 and 3, of 2."""
    with ExitStack() as stack:
        parts = [
            stack.enter_context(serving(sharded, with_encoder=True, shards=shards)) for shards in ("0", "1,3", "2")
        ]
        addresses = [str(part.base_url) for part in parts]
        yield stack.enter_context(routing(addresses, tmp_path_factory.mktemp("router")))
