"""What a body may hold, checked before it is parsed, and parsed where it holds up nobody."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError

from query_service.answering.errors import TooManyError
from query_service.api.body import parsing
from query_service.api.body.limits import MAX_DEPTH, MAX_NAME_CHARS
from query_service.api.body.parsing import check_shape, parse
from query_service.api.requests import RerankRequest
from tests.query_service.conftest import serving

Q = {"query": "bees"}
JSON = {"content-type": "application/json"}


def count_slowly(body: bytes) -> tuple[int, int]:
    """Values and the deepest bracket, byte by byte."""
    values, depth, deepest, inside, escaped = 1, 0, 0, False, False
    for byte in body.decode("latin-1"):
        if byte == '"' and not escaped:
            inside = not inside
        elif not inside:
            values += byte in ",[{"
            depth += (byte in "[{") - (byte in "]}")
            deepest = max(deepest, depth)
        escaped = byte == "\\" and not escaped
    return values, deepest


@pytest.mark.parametrize("scanned", [1, 2, 3, 7, 1 << 20])
def test_values_and_brackets_are_counted_outside_of_strings(scanned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "SCANNED_BYTES", scanned)
    made = random.Random(scanned)
    for _ in range(60):
        body = "".join(made.choice(r"\\\"\",[]{}ab") for _ in range(made.randrange(1, 60))).encode()
        values, _ = count_slowly(body)
        try:
            check_shape(body, values)
        except TooManyError:
            pytest.fail(f"{body!r} has {values} values")
        if values > 1:
            with pytest.raises(TooManyError, match=f"more than {values - 1} values"):
                check_shape(body, values - 1)


def test_brackets_within_brackets_are_bounded() -> None:
    check_shape(b"[" * MAX_DEPTH + b'"[[["' + b"]" * MAX_DEPTH + b"[[", 1000)
    with pytest.raises(RequestValidationError):
        check_shape(b'{"a":' * (MAX_DEPTH + 1), 1000)


def test_a_million_wrong_ids_are_refused_before_one_is_parsed(
    service: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = b'{"query": "q", "ids": [' + b"1," * 1_000_000 + b"1]}"
    with monkeypatch.context() as patch:
        patch.setattr(parsing.json, "loads", lambda text: pytest.fail("parsed"))
        response = service.post("/rerank", content=body, headers=JSON)
    assert response.status_code == 413
    assert "more than 64000 values in one request" in response.json()["detail"]


def test_a_long_list_is_refused_before_its_elements_are_validated(service: httpx.Client) -> None:
    for path, field in (("/rerank", "ids"), ("/rerank", "documents"), ("/score", "queries"), ("/score", "pairs")):
        response = service.post(path, json=Q | {field: [None] * 1001})
        assert (response.status_code, response.json()["error"]["type"]) == (413, "TooManyError")
        assert f"1001 {field}" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"query": "q", "k": ' + b"1" * 1_000_000 + b"}", "a number has more than 4300 digits"),
        (b'{"query": "q", "extra": -' + b"1" * 5_000 + b"}", "a number has more than 4300 digits"),
        (b'{"query": "q", "extra": ' + b"[" * 70 + b"]" * 70 + b"}", "more than 64 brackets"),
        (b'{"query": "\xff"}', "not UTF-8"),
        ('{"query": "q"}'.encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_python_cannot_parse_is_a_400_that_says_why(service: httpx.Client, body: bytes, why: str) -> None:
    response = service.post("/search", content=body, headers=JSON)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "MalformedJSON")
    assert why in str(response.json()["detail"])


def test_a_byte_order_mark_is_no_error(service: httpx.Client) -> None:
    assert service.post("/search", content=b'\xef\xbb\xbf{"query": "bees"}', headers=JSON).status_code == 200


def test_large_bodies_are_parsed_off_the_event_loop_and_small_ones_on_it(
    service: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(*arguments: Any) -> object:
        threads.append(threading.current_thread().name)
        return parse(*arguments)

    monkeypatch.setattr(parsing, "parse", noted)
    for size in (10, parsing.SMALL_BYTES):
        answer = service.post("/rerank", json=Q | {"documents": ["a" * size]})
        assert answer.status_code == 200, answer.text
    assert threads[0] != threads[1]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/search", {"k": True}, "k"),
        ("/search", {"k": "5"}, "k"),
        ("/search", {"k": 5.5}, "k"),
        ("/search", {"top_n": "1"}, "top_n"),
        ("/search", {"top_n": 1 << 63}, "top_n"),
        ("/search", {"top_n": 10**4000}, "top_n"),
        ("/search", {"timeout_ms": False}, "timeout_ms"),
        ("/search", {"budget_ms": "20"}, "budget_ms"),
        ("/search", {"budget_ms": True}, "budget_ms"),
        ("/search", {"first_stage_weight": "1"}, "first_stage_weight"),
        ("/search", {"chunk_size": "4"}, "chunk_size"),
        ("/search", {"return_documents": "yes"}, "return_documents"),
        ("/rerank", {"ids": ["s1"], "top_k": True}, "top_k"),
        ("/rerank", {"ids": ["s1"], "truncate_prompt_tokens": True}, "truncate_prompt_tokens"),
        ("/rerank", {"ids": ["s1"], "raw_scores": 1}, "raw_scores"),
        ("/rerank", {"ids": ["x" * (MAX_NAME_CHARS + 1)]}, "ids.0"),
        ("/rerank", {"documents": [{"text": "a", "id": "x" * (MAX_NAME_CHARS + 1)}]}, "documents.0"),
        ("/rerank", {"ids": ["s1"], "model": "x" * (MAX_NAME_CHARS + 1)}, "model"),
        ("/explain", {"doc_id": "s1", "chunk_size": "4"}, "chunk_size"),
    ],
)
def test_a_value_of_another_kind_or_beyond_its_bound_is_a_422_that_names_the_field(
    service: httpx.Client, path: str, body: dict[str, object], field: str
) -> None:
    response = service.post(path, json=Q | body)
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith(f"{field}")
    assert len(response.text) < 2000


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999"])
@pytest.mark.parametrize("field", ["budget_ms", "first_stage_weight", "timeout_ms", "k", "chunk_size"])
def test_infinities_are_no_numbers_of_anything(service: httpx.Client, field: str, value: str) -> None:
    response = service.post("/search", content=f'{{"query": "bees", "{field}": {value}}}', headers=JSON)
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith(field)


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "-1e999"])
def test_a_number_without_end_is_named_in_whatever_field_it_stands(service: httpx.Client, value: str) -> None:
    nested = f'{{"query": "bees", "texts": ["a", {{"text": "b", "Meta": [1.5, {{"Year": {value}}}]}}], "x": {value}}}'
    for body, field in (
        (f'{{"query": "bees", "ids": ["s1"], "x": {value}}}', "x"),
        (nested, "texts.1.Meta.1.Year"),
        (value, "the body"),
    ):
        response = service.post("/v1/rerank", content=body, headers=JSON)
        assert response.status_code == 422, response.text
        assert response.json()["detail"] == f"{field}: Input should be a finite number"
    kept = service.post("/rerank", content=b'{"query": "bees", "texts": ["NaN"], "x": 1e308}', headers=JSON)
    assert kept.status_code == 200


def test_whole_numbers_may_be_written_as_floats(service: httpx.Client) -> None:
    assert service.post("/search", content=b'{"query": "bees", "k": 5.0, "top_n": 2}', headers=JSON).status_code == 200


@pytest.mark.parametrize("path", ["/search", "/rerank", "/score", "/explain", "/infinity/rerank", "/v1/score"])
def test_an_instruction_is_bounded_in_characters_and_in_tokens(index_folder: Path, path: str) -> None:
    body = Q | {"ids": ["s1"]} if "rerank" in path else Q
    body = {"pairs": [Q | {"doc_id": "s1"}]} if "score" in path else body
    body = Q | {"doc_id": "s1"} if "explain" in path else body
    with serving(index_folder, max_query_chars=2000, max_instruction_tokens=40) as client:
        assert client.post(path, json=body | {"instruction": "Find the passage."}).status_code == 200
        for instruction, why in (("x" * 2001, "at most 2000"), ("a b c d e f " * 20, "more than 40 tokens")):
            response = client.post(path, json=body | {"instruction": instruction})
            assert response.status_code == 422
            assert why in response.json()["error"]["message"]


def test_valid_bodies_give_the_same_model_whatever_their_size() -> None:
    body = {"query": 'q\\"[', "documents": ["a, [b]", {"text": "{\\", "id": 3}], "extra": {"a": [1, None]}}
    assert parse(json.dumps(body).encode(), RerankRequest, 10) == RerankRequest.model_validate(body)


@pytest.mark.parametrize(
    "body",
    [b'{"query": "a", "query": "b", "ids": ["s1"]}', b'{"query": "a", "documents": [{"text": "a", "text": "b"}]}'],
)
def test_a_key_that_stands_twice_is_a_400_that_names_it(service: httpx.Client, body: bytes) -> None:
    response = service.post("/rerank", content=body, headers=JSON)
    assert (response.status_code, "stands twice in one object" in response.text) == (400, True)
