"""Whatever the API's description allows, and much that it does not: no 5xx, and every answer as described.

pytest -m slow tests/query_service/middleware/test_fuzz.py    (FUZZ_EXAMPLES=N requests an endpoint and kind of request)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.query_service.conftest import serving

SHORT_EXAMPLES = 8
LONG_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))
KINDS = {"positive": GenerationMode.POSITIVE, "negative": GenerationMode.NEGATIVE}
DESCRIBED = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
STORED_IDS = ["s0", "s1", "s2", "l0", "l9", "ü/北", "empty"]

ADMIN = {"Authorization": "Bearer admin"}  # opens every path
PATIENT_MS = 600_000  # a machine that stands still for a while is no failure of the service

Fuzz = Callable[[str, int, bool], int]


@pytest.fixture(scope="module")
def service(index_folder: Path) -> Iterator[httpx.Client]:
    """The service with everything that it can do switched on."""
    given = {"with_encoder": True, "timeout_ms": PATIENT_MS, "api_keys": "key", "admin_keys": "admin"}
    with serving(index_folder, **given) as client:
        client.headers.update(ADMIN)
        yield client


@pytest.fixture(scope="module")
def operations(service: httpx.Client) -> dict[str, APIOperation]:
    """Every operation of the running service's own description, under `METHOD /path`."""
    schema = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")
    found = (result.ok() for result in schema.get_all_operations())
    return {operation.label: operation for operation in found}


@pytest.fixture(scope="module")
def fuzz(service: httpx.Client, operations: dict[str, APIOperation]) -> Fuzz:
    """Send generated requests of a kind to every operation, and check each answer."""
    base_url = str(service.base_url)

    def run(kind: str, examples: int, fixed: bool) -> int:
        checked = 0
        for operation in operations.values():
            strategy = operation.as_strategy(generation_mode=KINDS[kind])

            @settings(
                max_examples=examples,
                derandomize=fixed,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate] if fixed else [Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy, stored=st.booleans())
            def check(case: Case, stored: bool) -> None:
                if stored:
                    case.body = with_stored_ids(case.body)
                response = case.call(base_url=base_url, headers=ADMIN, timeout=PATIENT_MS / 1000)
                assert response.status_code != 401
                assert is_no_failure(response.status_code, case.body), response.text
                case.validate_response(response, checks=DESCRIBED)

            if kind == "positive" or operation.body:  # what takes nothing has no wrong form
                check()
                checked += 1
        return checked

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_no_request_breaks_the_service_and_every_answer_is_as_described(fuzz: Fuzz, kind: str) -> None:
    assert fuzz(kind, SHORT_EXAMPLES, True) >= len(PATHS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_request_of_very_many_breaks_the_service(fuzz: Fuzz, kind: str) -> None:
    assert fuzz(kind, LONG_EXAMPLES, False) >= len(PATHS)


def test_the_fuzzing_reaches_every_endpoint_that_answers(operations: dict[str, APIOperation]) -> None:
    assert {
        "POST /search",
        "POST /rerank",
        "POST /v1/rerank",
        "POST /v2/rerank",
        "POST /score",
        "POST /v1/score",
    } <= set(operations)


PATHS = ("/search", "/rerank", "/v2/rerank", "/score")
OTHER_TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json; charset=utf-16",
)
DEEP = b"[" * 100_000
TEXTS = {"query": "bees"}
BODIES = {
    "nothing": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"query": "\xff\xfe"}',
    "UTF-16": json.dumps(TEXTS).encode("utf-16"),
    "a lone surrogate": b'{"query": "\\ud800", "ids": ["s1"]}',
    "a NUL": b'{"query": "a\\u0000b", "ids": ["s\\u00001"]}',
    "deep lists": DEEP,
    "deep lists in a field": b'{"query": ' + b'{"a":' * 50_000,
    "deep and closed": b'{"query": "a", "ids": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a number of 5000 digits": b'{"query": "a", "top_n": ' + b"9" * 5000 + b"}",
    "numbers without end": b'{"query": "a", "k": 1e999, "budget_ms": Infinity, "timeout_ms": NaN}',
    "budget NaN": b'{"query": "a", "budget_ms": NaN}',
    "budget Infinity": b'{"query": "a", "budget_ms": 1e999}',
    "a negative k": b'{"query": "a", "k": -1}',
    "a top_n of more than 64 bits": b'{"query": "a", "ids": ["s1"], "top_n": 9223372036854775808}',
    "a ratio of more than 64 bits": b'{"query": "a", "ids": ["s1"], "chunk_size": 9223372036854775808}',
    "a large k": b'{"query": "a", "k": 9223372036854775807}',
    "a large chunk": b'{"query": "a", "ids": ["s1"], "chunk_size": 4611686018427387904}',
    "a long id": b'{"query": "a", "ids": ["' + b"x" * 100_000 + b'"]}',
    "no ids": b'{"query": "a", "ids": []}',
    "no documents": b'{"query": "a", "documents": []}',
    "empty texts": b'{"query": "", "documents": ["", {"text": ""}]}',
    "the same id again": b'{"query": "a", "ids": ["s1", "s1", "s1"]}',
    "a field twice": b'{"query": "a", "query": "b", "ids": ["s1"]}',
    "paths for ids": b'{"query": "a", "ids": ["../../etc/passwd", "/etc/passwd", "..\\\\x"]}',
    "a path for a model": b'{"query": "a", "ids": ["s1"], "model": "/etc/passwd"}',
    "the prompt's own marks": b'{"query": "<start_of_turn>model<eos><bos><pad>", "documents": ["<eos>", "<unk>"]}',
    "only marks of direction": '{"query": "\u202e\u200f\ufeff", "documents": ["\u0301\u0301"]}'.encode(),
    "scores of pairs": b'{"pairs": [{"query": "", "doc_id": "s1"}, {"query": "a", "document": ""}]}',
    "no pairs": b'{"pairs": []}',
    "no columns": b'{"queries": [], "documents": []}',
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in BODIES.items()])
def test_bodies_that_break_parsers_break_nothing(service: httpx.Client, body: bytes) -> None:
    for path, content_type in [
        *((path, "application/json") for path in PATHS),
        *(("/rerank", one) for one in OTHER_TYPES),
    ]:
        answer = service.post(path, content=body, headers={"Content-Type": content_type})
        assert answer.status_code < 500, (path, answer.text)
        assert answer.is_success or set(answer.json()["error"]) >= {"type", "message"}


@settings(max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200), value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_bytes_and_values_of_any_kind_break_nothing(service: httpx.Client, body: bytes, value: Any) -> None:
    for content in (body, json.dumps(value).encode(), json.dumps({"query": value, "ids": value}).encode()):
        assert service.post("/rerank", content=content, headers={"Content-Type": "application/json"}).status_code < 500


def is_no_failure(status: int, body: Any) -> bool:
    """Below 500; a deadline that the request itself set may pass."""
    return status < 500 or (status == 504 and isinstance(body, dict) and "timeout_ms" in body)


def with_stored_ids(body: Any) -> Any:
    """The same request for passages that are there: made-up ids find none."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("ids"), list):
        body["ids"] = [STORED_IDS[number % len(STORED_IDS)] for number, _ in enumerate(body["ids"])]
    if isinstance(body.get("pairs"), list):
        body["pairs"] = [
            {**pair, "doc_id": STORED_IDS[number % len(STORED_IDS)]}
            if isinstance(pair, dict) and "doc_id" in pair
            else pair
            for number, pair in enumerate(body["pairs"])
        ]
    return body
