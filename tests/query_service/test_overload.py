"""More than the service can do: refused, given up in time, dropped. A gate (a call that waits) holds the decoder."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx
import pytest

from kalm_cache.settings import load_settings
from query_service.admission import Admission, BusyError
from query_service.app import create_app
from query_service.cost import CostModel
from query_service.engine import Engine
from query_service.server import open_service
from query_service.service import Service
from tests.query_service.conftest import running

BODY = {"query": "Where do bees dance?", "ids": ["s1", "s2", "s3"]}


@dataclass(frozen=True, slots=True)
class Held:
    """A service whose decoder does nothing until `gate` is set."""

    service: Service
    client: httpx.Client
    gate: Event
    pool: ThreadPoolExecutor

    def ask(self, **more: object) -> Future[httpx.Response]:
        """A request, from a thread of its own, that waits for the decoder now."""
        depth = self.service.engine.depth
        asked = self.pool.submit(self.client.post, "/rerank", json=BODY | more)
        wait_until(lambda: self.service.engine.depth > depth)
        return asked

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])


@contextmanager
def held(folder: Path, **settings: object) -> Iterator[Held]:
    service = open_service(folder, load_settings(device="cpu", dtype="float32", watch_seconds=0, **settings))
    gate, entered = Event(), Event()
    with running(create_app(service)) as client, ThreadPoolExecutor(4) as pool:
        wait_until(lambda: client.get("/ready").status_code == 200)
        service.engine.call(lambda: (entered.set(), gate.wait()))
        entered.wait()
        try:
            yield Held(service, client, gate, pool)
        finally:
            gate.set()


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_request_above_the_limit_gets_429_and_when_to_come_again(index_folder: Path) -> None:
    with held(index_folder, queue_limit=1) as there:
        first = there.ask()
        refused = there.client.post("/rerank", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "BusyError"
        assert there.metric('kalm_cache_rejected_total{reason="queue_full"}') == 1
        there.gate.set()
        assert first.result().status_code == 200
        assert there.client.post("/rerank", json=BODY).status_code == 200


def test_what_could_not_be_answered_in_time_is_refused_at_once(index_folder: Path) -> None:
    with held(index_folder) as there:
        there.service.engine.cost = CostModel(ms_per_unit=100.0)
        first = there.ask()
        wait_ms = there.service.engine.backlog_ms
        refused = there.client.post("/rerank", json=BODY | {"timeout_ms": 500})
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) == pytest.approx(wait_ms / 1000, abs=1)
        there.gate.set()
        assert first.result().status_code == 200


def test_a_request_that_is_not_answered_in_time_gets_504_and_its_pairs_are_never_decoded(index_folder: Path) -> None:
    with held(index_folder) as there:
        decoded = there.metric("kalm_cache_batch_pairs_sum")
        late = there.ask(timeout_ms=2000).result()
        assert late.status_code == 504
        assert late.json()["error"]["type"] == "DeadlineError"
        assert there.service.engine.depth == 0
        assert there.metric('kalm_cache_rejected_total{reason="deadline"}') == 1
        there.gate.set()
        there.service.engine.call(int).result()
        assert there.metric("kalm_cache_batch_pairs_sum") == decoded
        assert there.service.admission.under_way == 0


def test_the_pairs_of_a_client_that_left_are_never_decoded(index_folder: Path) -> None:
    with held(index_folder) as there:
        decoded = there.metric("kalm_cache_batch_pairs_sum")
        body = json.dumps(BODY).encode()
        head = f"POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        url = there.client.base_url
        with socket.create_connection((url.host, url.port or 80), 60) as connection:
            connection.sendall(f"{head}\r\n".encode() + body)
            wait_until(lambda: there.service.engine.depth == 1)
        wait_until(lambda: there.service.engine.depth == 0)
        wait_until(lambda: there.metric('kalm_cache_rejected_total{reason="disconnected"}') == 1)
        there.gate.set()
        there.service.engine.call(int).result()
        assert there.metric("kalm_cache_batch_pairs_sum") == decoded
        assert there.service.admission.under_way == 0
        assert there.service.live.served.leases == 0


def test_requests_that_wait_share_the_batches_that_follow(index_folder: Path) -> None:
    with held(index_folder) as there:
        batches = there.metric("kalm_cache_batch_pairs_count")
        asked = [there.ask() for _ in range(4)]
        there.gate.set()
        answers = [one.result().json() for one in asked]
        scores = [
            [(one["id"], pytest.approx(one["score"], abs=1e-5)) for one in answer["results"]] for answer in answers
        ]
        assert all(one == scores[0] for one in scores)
        assert there.metric("kalm_cache_batch_pairs_count") == batches + 1


def test_who_leaves_makes_room_also_after_an_error() -> None:
    admission = Admission(1, Engine(CostModel()))
    with pytest.raises(ZeroDivisionError), admission.enter(1000):
        _ = 1 / 0
    with admission.enter(1000):
        assert admission.under_way == 1
        with pytest.raises(BusyError, match="1 requests are under way") as refusal, admission.enter(1000):
            pass
        assert refusal.value.retry_after_seconds == 1
    assert admission.under_way == 0
