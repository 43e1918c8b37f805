from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from query_service.middleware.request_log import RequestLog, current_request_id, note_answer, note_query
from tests.query_service.middleware.served import serving, small_app

LOGGER = "query_service.middleware.request_log"


@pytest.fixture(scope="module")
def logged() -> Iterator[httpx.Client]:
    with serving(RequestLog(small_app())) as client:
        yield client


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["fields"] for record in caplog.records if "fields" in vars(record)]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)


@pytest.mark.parametrize("given", ["abc-123", "A.b_c~d".replace("~", ":"), "x" * 128, "a/b+c=@d"])
def test_a_plain_request_id_is_handed_back(logged: httpx.Client, given: str) -> None:
    assert logged.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", 'a"b', "<script>", "a,b", "ä"])
def test_any_other_is_replaced_by_a_new_one(logged: httpx.Client, given: str) -> None:
    answers = [logged.get("/health", headers={"X-Request-Id": given.encode("latin-1")}) for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == 2


def test_one_line_a_request_says_what_was_asked_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    with serving(RequestLog(small_app())) as client:
        client.get("/items/42?key=secret")
    # a service of another test may be late with its last line
    (line,) = [one for one in lines(caplog) if one["path"] == "/items/{id}"]
    assert line.pop("ms") > 0
    assert line == {
        "method": "GET",
        "path": "/items/{id}",
        "status": 200,
        "bytes": len('{"id":"42"}'),
        "index_version": "000007",
        "timings_ms": {"queue": 1.5, "decode": 20.0},
    }
    text = next(record.getMessage() for record in caplog.records if "/items/{id}" in record.getMessage())
    assert re.fullmatch(r"GET /items/\{id\} 200 \d+\.\d ms 11 B 000007 queue=1.5 decode=20", text)


def test_unknown_paths_are_other_and_their_text_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with serving(RequestLog(small_app())) as client:
        assert client.get("/no/such/%0apath").status_code == 404
    assert [(line["path"], line["status"]) for line in lines(caplog)] == [("other", 404)]
    assert "such" not in "".join(record.getMessage() for record in caplog.records if record.name == LOGGER)


def test_queries_are_logged_only_on_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving(RequestLog(small_app())) as client:
        client.get("/items/1")
    assert "penicillin" not in caplog.text
    with serving(RequestLog(small_app(), log_queries=True)) as client:
        client.get("/items/1")
    assert lines(caplog)[-1]["query"] == "who found penicillin?"
    assert '"who found penicillin?"' in caplog.text


def test_every_line_within_a_request_knows_its_id_and_requests_at_once_do_not_mix() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import anyio

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        seen = [current_request_id()]
        await anyio.sleep(0.02)
        seen.append(await anyio.to_thread.run_sync(current_request_id))
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        seen.append(current_request_id())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b"" if len(set(seen)) == 1 else b"mixed up"})

    with serving(RequestLog(slow)) as client, ThreadPoolExecutor(8) as threads:
        ids = [f"request-{number}" for number in range(40)]
        answers = threads.map(lambda one: client.get("/", headers={"X-Request-Id": one}), ids)
        assert [answer.headers["x-request-id"] for answer in answers] == ids
    assert current_request_id() is None


def test_after_an_unexpected_error_the_connection_lives_on_and_the_log_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(RequestLog(small_app())) as client:
        assert [client.get(path).status_code for path in ("/fail", "/health", "/fail", "/health")] == [500, 200] * 2
    errors = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in errors if record.exc_info] == ["this endpoint fails"] * 2
    assert [line["status"] for line in lines(caplog)] == [500, 200, 500, 200]


def test_an_error_without_an_answer_is_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("nobody answers")

    with serving(RequestLog(broken)) as client:
        assert client.get("/").status_code == 500
    assert "nobody answers" in caplog.text


def test_outside_of_a_request_notes_go_nowhere() -> None:
    note_query("nobody listens")
    note_answer("000001", {})
    assert current_request_id() is None


def test_a_client_that_leaves_before_the_answer_is_a_499(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving(RequestLog(silent)) as client, pytest.raises(httpx.ReadTimeout):
        client.get("/", timeout=0.1)
    assert [line["status"] for line in lines(caplog)] == [499]
