"""A real index, made by the real indexer from a random checkpoint, behind real servers on loopback ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest
from fastapi import FastAPI

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.reranker import KaLMReranker
from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.connections.limits import ConnectionLimits
from query_service.server import address_of, bind, make_server, open_service, open_text_service
from tests import indexes
from tests.indexes import make_embedder
from tests.texts import DOCUMENTS, SENTENCES, long_text

MAX_LENGTH = 48
CORPUS = (
    {f"s{number}": text for number, text in enumerate(SENTENCES)}
    | {f"l{number}": long_text(8 + 4 * number, seed=number) for number in range(10)}
    | {"ü/北": DOCUMENTS["chinese"], "empty": ""}
)


@contextmanager
def running(app: FastAPI, limits: ConnectionLimits | None = None) -> Iterator[httpx.Client]:
    """A client of the app behind a server of its own, in a thread."""
    server = make_server(app, limits)
    with bind("127.0.0.1", 0) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=address_of(listener), timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serving(folder: Path, **settings: object) -> Iterator[httpx.Client]:
    """A client of a service over an index, with settings of its own."""
    given = load_settings(**({"device": "cpu", "dtype": "float32"} | settings))
    with running(create_app(open_service(folder, given)), ConnectionLimits.from_settings(given)) as client:
        yield client


@contextmanager
def serving_texts(model: Path, **settings: object) -> Iterator[httpx.Client]:
    """A client of a service without an index."""
    defaults = {"device": "cpu", "dtype": "float32", "max_length": MAX_LENGTH, "codec": "fp32"}
    given = load_settings(model=str(model), **(defaults | settings))
    with running(create_app(open_text_service(given)), ConnectionLimits.from_settings(given)) as client:
        yield client


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedder(tmp_path_factory.mktemp("embedder"), 16, CORPUS.values())


@pytest.fixture(scope="session")
def build(mini_folder: Path, embedder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Index the corpus into a new folder, with settings of one's own."""

    def run(**settings: object) -> Path:
        folder = tmp_path_factory.mktemp("index")
        given = load_settings(
            model=str(mini_folder), embedder=str(embedder_folder), device="cpu", max_length=MAX_LENGTH, **settings
        )
        indexes.build(folder, given, CORPUS)
        return folder

    return run


@pytest.fixture(scope="session")
def index_folder(build: Callable[..., Path]) -> Path:
    return build()


@pytest.fixture(scope="session")
def index(index_folder: Path) -> Iterator[PassageIndex]:
    with PassageIndex.open(index_folder, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def reranker(mini_folder: Path) -> KaLMReranker:
    return KaLMReranker(str(mini_folder), device="cpu", max_length=MAX_LENGTH)


@pytest.fixture(scope="session")
def service(index_folder: Path) -> Iterator[httpx.Client]:
    """The service with the encoder."""
    with serving(index_folder, with_encoder=True) as client:
        yield client


@pytest.fixture(scope="session")
def decoder_only(index_folder: Path) -> Iterator[httpx.Client]:
    """The service without the encoder, and with an instruction of its own."""
    with serving(index_folder, instruction="Find the passage.", top_n=2) as client:
        yield client
