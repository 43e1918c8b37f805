from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.settings import load_settings
from query_service.app import create_app
from query_service.server import open_service
from tests.query_service.conftest import CORPUS, running

IDS = list(CORPUS)
QUERIES = ["Where do bees dance?", "When does the ferry leave?", "capital of China", "vitamin", "", "gravity"]


def test_health_says_what_is_served(service: httpx.Client, index: PassageIndex) -> None:
    answer = service.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "index_version": "000001",
        "model": index.generation.manifest.model.rpartition("/")[2],
        "passages": 18,
        "damaged_reads": 0,
        "reload_failure": None,
        "behind": None,
        "prefix_cache": None,
        "text_cache": None,
        "missing_shards": [],
    }


def test_the_openapi_document_describes_every_path_with_examples(service: httpx.Client) -> None:
    document = service.get("/openapi.json").json()
    rerank = {"/rerank", "/v1/rerank", "/v2/rerank"}
    status = {"/health", "/ready", "/info", "/v1/models", "/infinity/models", "/metrics", "/admin/reload"}
    answers = {"/search", "/score", "/v1/score", "/infinity/rerank"} | rerank
    assert document["paths"].keys() >= status | answers
    for name in ("SearchRequest", "RerankRequest", "ScoreRequest", "ErrorResponse"):
        assert document["components"]["schemas"][name]["examples"]
    operations = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(operations)) == len(operations)
    assert service.get("/docs").status_code == 200


def test_the_examples_of_the_openapi_document_are_valid_requests(service: httpx.Client) -> None:
    schemas = service.get("/openapi.json").json()["components"]["schemas"]
    answers = {
        path: service.post(path, json=schemas[f"{path[1:].title()}Request"]["examples"][0])
        for path in ("/search", "/rerank", "/score", "/explain")
    }
    errors = {path: answer.json().get("error", {}).get("type") for path, answer in answers.items()}
    unknown = "UnknownIdError"  # the ids of the examples are not stored
    assert errors == {"/search": None, "/rerank": unknown, "/score": unknown, "/explain": unknown}


def test_header_log_line_and_body_have_the_same_timings(
    service: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "query_service.middleware.request_log")
    request_id = {"X-Request-Id": "timed"}
    answer = service.post("/search", json={"query": "bees"}, headers=request_id)
    header = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    body = answer.json()["timings_ms"]
    assert list(header) == list(body) == ["queue", "first_stage", "read", "decode", "total"]
    stages = {stage: float(ms) for stage, ms in header.items() if stage != "total"}  # the body's is taken earlier
    assert stages == {stage: pytest.approx(ms, abs=0.006) for stage, ms in body.items() if stage != "total"}
    deadline = time.monotonic() + 60
    lines: list[dict[str, Any]] = []
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)  # the line is written after the last byte was sent
        fields = [vars(record).get("fields", {}) for record in list(caplog.records)]
        lines = [each for each in fields if each.get("path") == "/search"]
    [line] = lines
    assert line["timings_ms"] == {stage: float(ms) for stage, ms in header.items()}
    assert line["index_version"] == answer.headers["x-index-version"] == "000001"


def test_the_encoder_loads_when_the_first_raw_document_comes(index_folder: Path) -> None:
    opened = open_service(index_folder, load_settings(device="cpu", dtype="float32", with_encoder=True))
    encoder = opened.live.served.documents
    assert encoder is not None
    with running(create_app(opened)) as client:
        client.get("/health")
        client.post("/search", json={"query": "bees"})
        client.post("/rerank", json={"query": "bees", "ids": ["s1"]})
        client.post("/rerank", json={"query": "bees", "documents": []})
        assert not encoder.loaded
        assert client.post("/rerank", json={"query": "bees", "documents": ["a text"]}).status_code == 200
        assert encoder.loaded


def test_health_is_answered_while_a_computation_runs(index_folder: Path) -> None:
    opened = open_service(index_folder, load_settings(device="cpu", dtype="float32", with_encoder=True))
    encoder = opened.live.served.documents
    assert encoder is not None
    with running(create_app(opened)) as client, ThreadPoolExecutor() as threads:
        with encoder._lock:  # the computation stands still inside the encoder
            waiting = [threads.submit(client.post, "/rerank", json=raw_request(n)) for n in range(3)]
            assert client.get("/health").status_code == 200
            assert not any(future.done() for future in waiting)
        assert [future.result().status_code for future in waiting] == [200] * 3


def raw_request(number: int) -> dict[str, object]:
    return {"query": QUERIES[number], "documents": [CORPUS[doc_id] for doc_id in IDS[number : number + 5]]}


def mixed_requests() -> list[tuple[str, dict[str, object]]]:
    """Every kind of request, with different queries and passages."""
    requests: list[tuple[str, dict[str, object]]] = []
    for number, query in enumerate(QUERIES):
        requests.append(("/search", {"query": query, "k": 5 + number}))
        requests.append(("/rerank", {"query": query, "ids": IDS[number:]}))
        requests.append(("/v1/rerank", raw_request(number)))
        requests.append(("/rerank", {"query": query, "texts": ["one", query], "chunk_size": 1 + number}))
        requests.append(
            ("/score", {"pairs": [{"query": query, "doc_id": IDS[number]}, {"query": "", "document": "x"}]})
        )
    return requests


def leaves(answer: object) -> list[object]:
    """What of an answer must not depend on when it was computed."""
    if isinstance(answer, dict):
        answer = [value for key, value in answer.items() if key not in ("id", "created", "timings_ms")]
    return [leaf for value in answer for leaf in leaves(value)] if isinstance(answer, list) else [answer]


def split(answer: object) -> tuple[list[float], list[object]]:
    """Numbers that were computed, and everything else."""
    found = leaves(answer)
    return [leaf for leaf in found if isinstance(leaf, float)], [leaf for leaf in found if not isinstance(leaf, float)]


def test_concurrent_requests_are_answered_as_one_by_one(service: httpx.Client) -> None:
    requests = mixed_requests() * 2
    alone = [service.post(path, json=body).json() for path, body in requests]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda request: service.post(request[0], json=request[1]), requests))
    assert {response.status_code for response in together} == {200}
    for response, expected in zip(together, alone, strict=True):
        computed, others = split(response.json())
        assert others == split(expected)[1]
        assert computed == pytest.approx(split(expected)[0], abs=1e-5)
