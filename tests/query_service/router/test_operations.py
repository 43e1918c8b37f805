"""Keys, probes, deadlines, traces and numbers of a router."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from query_service.middleware import request_log
from query_service.middleware.tracing import Tracing, start_tracing
from tests.query_service.conftest import serving
from tests.query_service.router.conftest import routing
from tests.waiting import wait_for

ASKED = {"query": "bees", "ids": ["s0", "s1", "l0"]}


def test_a_router_without_services_lives_and_is_not_ready(tmp_path: Path) -> None:
    with routing(["http://127.0.0.1:1"], tmp_path) as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["index_version"]) == (200, "none")
        for response in (client.get("/ready"), client.get("/info"), client.post("/rerank", json=ASKED)):
            assert (response.status_code, response.json()["error"]["type"]) == (503, "NoShardsError")


def test_the_router_asks_with_its_own_key_and_clients_with_theirs(sharded: Path, tmp_path: Path) -> None:
    with serving(sharded, shards="0,1,2,3", api_keys="inner") as part:
        address = [str(part.base_url)]
        assert part.get("/shard/status").status_code == 401
        with routing(address, tmp_path, shard_api_key="inner", api_keys="outer") as client:
            assert client.post("/rerank", json=ASKED).status_code == 401
            with_key = client.post("/rerank", json=ASKED, headers={"Authorization": "Bearer outer"})
            assert with_key.status_code == 200
        with routing(address, tmp_path, shard_api_key="wrong") as client:
            assert client.post("/rerank", json=ASKED).status_code == 503


def test_an_address_that_is_added_to_the_file_is_asked(sharded: Path, tmp_path: Path) -> None:
    with (
        serving(sharded, shards="0,1") as one,
        serving(sharded, shards="2,3") as other,
        routing([str(one.base_url)], tmp_path, watch_seconds=0.05) as client,
    ):
        for refused in (client.post("/rerank", json=ASKED), client.get("/ready")):
            assert (refused.status_code, "shards 2, 3" in refused.text) == (503, True)
        (tmp_path / "shards.txt").write_text(f"{one.base_url}\n{other.base_url}\n")
        wait_for(lambda: client.get("/ready").status_code == 200)
        assert client.post("/rerank", json=ASKED).status_code == 200


def test_a_request_keeps_its_id_and_its_trace_on_the_way_to_the_shards(
    router: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    noted = request_log.note_answer

    def noting(version: str, timings_ms: dict[str, float]) -> None:
        notes = request_log.current_notes()
        assert notes is not None
        seen.append((notes.request_id, notes.trace.get("traceparent", "")))
        noted(version, timings_ms)

    monkeypatch.setattr("query_service.api.shards.note_answer", noting)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    router.post("/search", json={"query": "bees"}, headers={"X-Request-Id": "mine-1", "traceparent": parent})
    assert len(seen) >= 4  # three services searched, at least one reranked
    assert set(seen) == {("mine-1", parent)}


def test_a_deadline_is_handed_down(router: httpx.Client) -> None:
    late = router.post("/search", json={"query": "bees", "timeout_ms": 1})
    assert (late.status_code, late.json()["error"]["type"]) == (504, "DeadlineError")


def test_numbers_are_those_of_one_service_and_of_the_questions_asked(router: httpx.Client) -> None:
    before = router.get("/metrics").text
    router.post("/rerank", json=ASKED)
    after = router.get("/metrics").text

    def count(text: str, name: str) -> float:
        return float(next(line for line in text.splitlines() if line.startswith(name)).rsplit(" ", 1)[1])

    hit = 'kalm_cache_passages_total{cache="hit"}'
    assert count(after, hit) - count(before, hit) == len(ASKED["ids"])
    assert 'kalm_cache_shard_questions_total{outcome="answered",path="/shard/score"}' in after
    assert count(after, "kalm_cache_missing_shards") == 0
    assert count(after, 'kalm_cache_replicas{state="living"}') == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [("/shard/find", b"{}"), ("/shard/rank", b"[]"), ("/shard/score", b"no JSON"), ("/shard/locate", b"")],
)
def test_what_no_router_asks_is_refused_by_a_service_of_shards(sharded: Path, path: str, body: bytes) -> None:
    with serving(sharded, shards="0") as part:
        refused = part.post(path, content=body, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "UsageError")


def test_a_service_without_shards_has_no_such_paths(whole: httpx.Client) -> None:
    assert whole.get("/shard/status").status_code == 404


def test_spans_of_shards_are_under_the_routers(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporters: list[InMemorySpanExporter] = []

    def start() -> Tracing:
        exporters.append(InMemorySpanExporter())
        return start_tracing(SimpleSpanProcessor(exporters[-1]))

    for module in ("query_service.engine.service", "query_service.router.service"):
        monkeypatch.setattr(f"{module}.start_tracing", start)
    with (
        serving(sharded, shards="0,1,2,3", tracing=True) as part,
        routing([str(part.base_url)], tmp_path, tracing=True) as client,
    ):
        client.post("/search", json={"query": "bees"}, headers={"X-Request-Id": "mine-2"})
    of_shards, of_router = (one.get_finished_spans() for one in exporters)
    (root,) = [span for span in of_router if span.name == "POST /search"]
    asked = [span for span in of_shards if (span.attributes or {}).get("kalm_cache.request_id") == "mine-2"]
    assert [span.name for span in asked] == ["POST /shard/find", "POST /shard/rank"]
    assert {span.parent.span_id for span in asked if span.parent} == {root.context.span_id}
    assert {span.context.trace_id for span in asked} == {root.context.trace_id}
