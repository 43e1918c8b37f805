from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Receive, Scope, Send

from query_service.middleware.keys import BearerKeys, KeyRing
from query_service.middleware.metrics import Metrics, RequestMetrics
from tests.query_service.middleware.served import serving, small_app

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(rendered: bytes) -> Samples:
    families = text_string_to_metric_families(rendered.decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(rendered: bytes, name: str, **labels: str) -> float | None:
    return samples(rendered).get((f"kalm_cache_{name}", frozenset(labels.items())))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_requests_count_by_method_template_and_status(metrics: Metrics) -> None:
    with serving(RequestMetrics(small_app(), metrics)) as client:
        for path in ("/items/1", "/items/2", "/search"):
            client.get(path)
        client.post("/search")
        client.get("/fail")
    rendered = metrics.render()
    assert value(rendered, "requests_total", method="GET", path="/items/{id}", status="200") == 2
    assert value(rendered, "requests_total", method="GET", path="/search", status="200") == 1
    assert value(rendered, "requests_total", method="POST", path="/search", status="200") == 1
    assert value(rendered, "requests_total", method="GET", path="/fail", status="500") == 1
    assert value(rendered, "request_seconds_count", path="/items/{id}") == 2
    assert value(rendered, "request_seconds_bucket", path="/items/{id}", le="30.0") == 2
    assert value(rendered, "requests_in_flight") == 0


def test_what_clients_make_up_does_not_become_labels(metrics: Metrics) -> None:
    before = len(samples(metrics.render()))
    with serving(RequestMetrics(small_app(), metrics)) as client:
        for number in range(30):
            client.get(f"/nowhere/{number}")
            client.get(f"/items/{number}")
            client.request(f"BREW{number}", "/search")
    new = set(samples(metrics.render()))
    paths = {dict(labels)["path"] for name, labels in new if name == "kalm_cache_requests_total"}
    methods = {dict(labels)["method"] for name, labels in new if name == "kalm_cache_requests_total"}
    assert paths == {"other", "/items/{id}", "/search"}
    assert methods == {"GET", "other"}
    assert len(new) - before < 70


def test_a_request_refused_before_routing_counts_under_its_route(metrics: Metrics) -> None:
    app = small_app()
    app.add_middleware(BearerKeys, keys=KeyRing(["alpha"]), admin_keys=KeyRing())
    app.add_middleware(RequestMetrics, metrics=metrics)
    with serving(app) as client:
        client.get("/items/7")
        client.get("/nowhere")
    assert value(metrics.render(), "requests_total", method="GET", path="/items/{id}", status="401") == 1
    assert value(metrics.render(), "requests_total", method="GET", path="other", status="401") == 1


def test_requests_under_way_are_in_flight_and_clients_that_left_are_499(metrics: Metrics) -> None:
    seen: list[float | None] = []

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(value(metrics.render(), "requests_in_flight"))
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(RequestMetrics(silent, metrics)) as client, pytest.raises(httpx.ReadTimeout):
        client.get("/", timeout=0.1)
    assert seen == [1]
    assert value(metrics.render(), "requests_in_flight") == 0
    assert value(metrics.render(), "requests_total", method="GET", path="other", status="499") == 1


def test_stages_batches_and_the_queue(metrics: Metrics) -> None:
    metrics.observe_stage("decode", 0.004)
    metrics.observe_stage("decode", 0.2)
    metrics.batch(pairs=32, tokens=8192)
    metrics.batch(pairs=3, tokens=100)
    metrics.queue_depth(5)
    rendered = metrics.render()
    assert value(rendered, "stage_seconds_count", stage="decode") == 2
    assert value(rendered, "stage_seconds_bucket", stage="decode", le="0.005") == 1
    assert value(rendered, "stage_seconds_sum", stage="decode") == pytest.approx(0.204)
    assert (value(rendered, "batch_pairs_sum"), value(rendered, "batch_tokens_sum")) == (35, 8292)
    assert value(rendered, "batch_pairs_bucket", le="4.0") == 1
    assert value(rendered, "queue_depth") == 5


def test_what_is_read_cut_or_damaged(metrics: Metrics) -> None:
    metrics.passages({"index_id": 6, "index_text": 3, "text_cache": 2, "in_flight": 1, "encoded": 2})
    metrics.passages({"index_id": 1}, missing=4)
    metrics.read(12_345)
    metrics.truncated(queries=1, documents=3)
    metrics.damaged(2)
    rendered = metrics.render()
    assert [value(rendered, "passages_total", cache=cache) for cache in ("hit", "encoded", "miss")] == [13, 2, 4]
    sources = ("index_id", "index_text", "text_cache", "in_flight", "encoded")
    assert [value(rendered, "passage_sources_total", source=source) for source in sources] == [7, 3, 2, 1, 2]
    assert value(rendered, "read_bytes_total") == 12_345
    assert [value(rendered, "truncated_total", what=what) for what in ("query", "document")] == [1, 3]
    assert value(rendered, "damaged_records_total") == 2


def test_the_prefix_tiers_running_counts_become_counters_also_when_a_new_tier_starts_at_0(metrics: Metrics) -> None:
    for hits, misses in ((3, 4), (10, 4), (1, 2)):
        metrics.prefix_cache(hits, misses)
    rendered = metrics.render()
    assert [value(rendered, "prefix_lookups_total", outcome=outcome) for outcome in ("hit", "miss")] == [11, 6]


def test_generations_swaps_and_refusals(metrics: Metrics) -> None:
    metrics.runs("0.1.0", "tiny")
    metrics.serves("000041", 2067)
    metrics.swapped()
    metrics.swap_failed()
    for _ in range(2):
        metrics.rejected("queue_full")
    rendered = metrics.render()
    assert value(rendered, "info", version="0.1.0", model="tiny") == 1
    assert (value(rendered, "generation"), value(rendered, "indexed_passages")) == (41, 2067)
    assert [value(rendered, "swaps_total", outcome=outcome) for outcome in ("ok", "failed")] == [1, 1]
    reasons = ("queue_full", "deadline", "disconnected", "draining")
    assert [value(rendered, "rejected_total", reason=reason) for reason in reasons] == [2, 0, 0, 0]


def test_two_applications_in_a_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.damaged(3)
    assert value(one.render(), "damaged_records_total") == 3
    assert value(other.render(), "damaged_records_total") == 0


WORKER = """
import sys
from query_service.middleware.metrics import Metrics
metrics = Metrics()
metrics.request("POST", "/search", "200", 0.01)
metrics.queue_depth(int(sys.argv[1]))
metrics.serves(sys.argv[2], 100)
metrics.runs("0.1.0", "tiny")
print("ready", flush=True)
if sys.stdin.readline() == "render\\n":
    sys.stdout.buffer.write(metrics.render())
"""

SUPERVISOR = f"""
import subprocess, sys
from pathlib import Path
from query_service.middleware.metrics import forget_worker, share_between_workers
(Path(sys.argv[1]) / "counter_1.db").write_bytes(b"of an earlier run")
share_between_workers(Path(sys.argv[1]))
def start(depth, version):
    worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}, depth, version], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == "ready\\n"
    return worker
first, second, gone = start("3", "000002"), start("4", "000001"), start("50", "000000")
gone.communicate("end\\n")
forget_worker(gone.pid)
print(first.communicate("render\\n")[0])
second.communicate("end\\n")
"""


def test_worker_processes_count_together_and_gauges_of_a_dead_one_end(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", SUPERVISOR, str(tmp_path)], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr
    rendered = result.stdout
    assert value(rendered, "requests_total", method="POST", path="/search", status="200") == 3
    assert value(rendered, "request_seconds_count", path="/search") == 3
    assert value(rendered, "queue_depth") == 7
    assert value(rendered, "generation") == 1  # the oldest that a living worker serves
    assert value(rendered, "info", version="0.1.0", model="tiny") == 1


def test_the_text_caches_counts_are_taken_over_as_they_grow(metrics: Metrics) -> None:
    for hits, written in ((3, 0), (3, 2), (5, 2)):
        metrics.text_cache(is_off=False, counts={"hits": hits, "written": written})
    metrics.text_cache(is_off=True, counts={"hits": 5, "written": 2})
    rendered = metrics.render()
    assert [value(rendered, "text_cache_passages_total", event=event) for event in ("hits", "written")] == [5, 2]
    assert value(rendered, "text_cache_off") == 1
