"""Long requests hold up nobody, and end when nobody waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.engine.admission import ENCODING
from query_service.engine.documents import DocumentEncoder
from query_service.engine.service import Service
from query_service.engine.texts import obtain
from query_service.server import open_service
from tests.query_service.conftest import running
from tests.waiting import wait_for

STORED = {"query": "bees", "ids": ["s1", "s2", "s3"]}
RAW = {"query": "bees", "documents": [f"bees {'and flowers ' * 9}{i}" for i in range(12)]}


class Watched:
    """The calls of a method of the encoder; the first one waits until it may go on."""

    def __init__(self, name: str, patch: pytest.MonkeyPatch) -> None:
        self.calls, self.entered, self.go_on = 0, Event(), Event()
        method = getattr(DocumentEncoder, name)

        def watched(*given: object) -> object:
            self.calls += 1
            if self.calls == 1:
                self.entered.set()
                assert self.go_on.wait(60)
            return method(*given)

        patch.setattr(DocumentEncoder, name, watched)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One document a piece of work."""
    monkeypatch.setattr(obtain, "ENCODE_TOKENS", 1)
    monkeypatch.setattr(obtain, "TOKENIZED_CHARS", 1)


@pytest.fixture
def served(index_folder: Path, small_pieces: None) -> Iterator[tuple[Service, httpx.Client]]:
    service = open_service(index_folder, load_settings(device="cpu", dtype="float32", with_encoder=True))
    with running(create_app(service)) as client:
        assert client.post("/rerank", json=RAW | {"documents": ["a"]}).status_code == 200  # loads the encoder
        yield service, client


@pytest.mark.parametrize("name", ["tokenize", "encode"])
def test_stored_passages_are_answered_while_texts_are_under_way(
    served: tuple[Service, httpx.Client], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, client = served
    watched = Watched(name, monkeypatch)
    with ThreadPoolExecutor() as threads:
        long = threads.submit(client.post, "/rerank", json=RAW)
        assert watched.entered.wait(60)
        assert client.post("/rerank", json=STORED).status_code == 200
        watched.go_on.set()
        assert long.result().status_code == 200


@pytest.mark.parametrize("name", ["tokenize", "encode"])
def test_nothing_more_is_done_for_a_request_that_is_late(
    served: tuple[Service, httpx.Client], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    service, client = served
    watched = Watched(name, monkeypatch)
    assert client.post("/rerank", json=RAW | {"timeout_ms": 100}).status_code == 504
    watched.go_on.set()
    assert client.post("/rerank", json=STORED).status_code == 200
    wait_for(lambda: service.depth == 0)
    assert watched.calls <= 1


def test_raw_documents_leave_room_for_stored_passages(
    served: tuple[Service, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = served
    tokenized = Watched("tokenize", monkeypatch)
    many = ENCODING + 20
    with ThreadPoolExecutor(many) as threads:
        first = threads.submit(client.post, "/rerank", json=RAW)
        assert tokenized.entered.wait(60)
        rest = [threads.submit(client.post, "/rerank", json=RAW) for _ in range(many - 1)]
        wait_for(lambda: service.admission.under_way == many or any(each.done() for each in rest))
        assert client.post("/rerank", json=STORED).status_code == 200
        tokenized.go_on.set()
        assert {each.result().status_code for each in (first, *rest)} == {200}
