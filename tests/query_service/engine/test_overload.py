"""Too much, too slow, gone: what the service does with requests that it cannot or need not answer."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.engine.admission import STATE_HOLDERS
from query_service.engine.cost import CostModel
from query_service.engine.service import Service
from query_service.server import open_service
from tests.query_service.conftest import running
from tests.waiting import wait_for

BODY = {"query": "bees", "ids": ["s1", "s2", "s3"]}


class Held:
    """A service whose decoder stands still until `gate` is set."""

    def __init__(self, service: Service, client: httpx.Client) -> None:
        self.service, self.client, self.gate = service, client, Event()
        entered = Event()
        service.engine.call(lambda: (entered.set(), self.gate.wait()))
        entered.wait()

    def ask(self, **more: object) -> httpx.Response:
        return self.client.post("/rerank", json=BODY | more)

    def number(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def decoded_pairs(self) -> float:
        return self.number("kalm_cache_batch_pairs_sum")


@pytest.fixture
def hits(index_folder: Path) -> Iterator[Held]:
    service = open_service(index_folder, load_settings(device="cpu", dtype="float32", queue_limit=2))
    with running(create_app(service)) as client:
        assert client.get("/ready").status_code == 200  # held before that, it would not start
        one = Held(service, client)
        yield one
        one.gate.set()


def test_more_requests_than_may_be_under_way_get_429_and_a_time_to_come_again(hits: Held) -> None:
    with ThreadPoolExecutor() as threads:
        let_in = [threads.submit(hits.ask) for _ in range(2)]
        wait_for(lambda: hits.service.admission.under_way == 2)
        refused = hits.ask()
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "BusyError")
        assert int(refused.headers["retry-after"]) >= 1
        hits.gate.set()
        assert [future.result().status_code for future in let_in] == [200, 200]
    assert hits.ask().status_code == 200
    assert hits.number('kalm_cache_rejected_total{reason="queue_full"}') == 1


def test_a_request_that_could_not_be_answered_in_its_time_is_refused_at_once(hits: Held) -> None:
    hits.service.engine.cost = CostModel(ms_per_unit=1e6)  # as if a token took minutes
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(hits.ask)
        wait_for(lambda: hits.service.engine.depth == 1)
        refused = hits.ask(timeout_ms=1000)
        assert refused.status_code == 429
        hits.gate.set()
        assert waiting.result().status_code == 200


def test_a_request_whose_time_is_up_gets_504_and_is_never_decoded(hits: Held) -> None:
    before = hits.decoded_pairs()
    late = hits.ask(timeout_ms=50)
    assert (late.status_code, late.json()["error"]["type"]) == (504, "DeadlineError")
    assert "50 ms" in late.json()["detail"]
    assert hits.number('kalm_cache_rejected_total{reason="deadline"}') == 1
    hits.gate.set()
    assert hits.ask().status_code == 200
    assert hits.decoded_pairs() - before == len(BODY["ids"])


def test_a_client_that_leaves_is_not_decoded_for(hits: Held) -> None:
    before = hits.decoded_pairs()
    body = json.dumps(BODY).encode()
    head = "POST /rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    url = hits.client.base_url
    with socket.create_connection((url.host, url.port), 60) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: hits.service.engine.depth == 1)
    wait_for(lambda: hits.service.engine.depth == 0)
    wait_for(lambda: hits.service.admission.under_way == 0)
    assert hits.number('kalm_cache_rejected_total{reason="disconnected"}') == 1
    hits.gate.set()
    assert hits.ask().status_code == 200
    assert hits.decoded_pairs() - before == len(BODY["ids"])


def test_a_body_that_comes_in_pieces_is_read_to_its_end(hits: Held) -> None:
    hits.gate.set()
    pieces = iter([b'{"query": "bees", ', b'"ids": ["s1"', b', "s2"]}'])
    answer = hits.client.post("/rerank", content=pieces, headers={"Content-Type": "application/json"})
    assert (answer.status_code, len(answer.json()["results"])) == (200, 2)


def test_while_it_starts_or_stops_the_service_is_alive_but_not_ready(hits: Held) -> None:
    assert hits.client.get("/ready").status_code == 200
    hits.service.ready = False
    assert (hits.client.get("/health").status_code, hits.client.get("/ready").status_code) == (200, 503)
    assert hits.ask().status_code == 503
    hits.service.ready = True


def test_however_many_wait_only_some_hold_states_in_memory(index_folder: Path) -> None:
    service = open_service(index_folder, load_settings(device="cpu", dtype="float32", reader_threads=4))
    with running(create_app(service)) as client, ThreadPoolExecutor(STATE_HOLDERS + 8) as threads:
        assert client.get("/ready").status_code == 200
        hits = Held(service, client)
        service.engine.cost = CostModel(ms_per_unit=1e-6)  # however long its start took, none is refused as too late
        asked = [threads.submit(hits.ask) for _ in range(STATE_HOLDERS + 8)]
        try:
            wait_for(lambda: service.admission.under_way == STATE_HOLDERS + 8)
            wait_for(lambda: service.engine.depth == STATE_HOLDERS)
            assert service.admission.waiting == 8
        finally:
            hits.gate.set()  # a service whose engine is held does not end
        assert {future.result().status_code for future in asked} == {200}
        assert service.admission.waiting == service.admission.under_way == 0
