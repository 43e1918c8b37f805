from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from kalm_cache.client.retries import BY_STATUS, BY_TYPE, failure_of, failure_without_response, retry_after_seconds
from kalm_cache.errors import (
    AccessDeniedError,
    DamagedRecordError,
    DeadlineExceededError,
    IndexMismatchError,
    KalmCacheError,
    ServiceError,
    ServiceUnavailableError,
    UnknownIdError,
    UsageError,
)

REQUEST = httpx.Request("POST", "http://service/rerank")


def reply(status: int, body: Any, **headers: str) -> httpx.Response:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, request=REQUEST, **content)


def error(kind: str, **more: Any) -> dict[str, Any]:
    return {"error": {"type": kind, "message": f"the message of {kind}", **more}}


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (400, "EncoderOffError", UsageError),
        (400, "MalformedJSON", UsageError),
        (401, "Unauthorized", AccessDeniedError),
        (403, "Forbidden", AccessDeniedError),
        (404, "NotFound", ServiceError),
        (409, "IndexMismatchError", IndexMismatchError),
        (413, "TooManyError", UsageError),
        (422, "ValidationError", UsageError),
        (429, "BusyError", ServiceUnavailableError),
        (500, "DamagedRecordError", DamagedRecordError),
        (500, "InternalServerError", ServiceError),
        (502, "BadGateway", ServiceError),
        (503, "NotReadyError", ServiceUnavailableError),
        (504, "DeadlineError", DeadlineExceededError),
    ],
)
def test_each_status_is_an_exception_of_the_project(status: int, kind: str, raised: type[KalmCacheError]) -> None:
    failure = failure_of(reply(status, error(kind)))
    assert type(failure) is raised
    assert f"the message of {kind}" in str(failure)


def test_unknown_ids_are_the_error_that_an_index_raises() -> None:
    failure = failure_of(reply(404, error("UnknownIdError", ids=["a", "b"])))
    assert isinstance(failure, UnknownIdError)
    assert (failure.ids, str(failure)) == (["a", "b"], str(UnknownIdError(["a", "b"])))


def test_a_failure_of_the_service_says_where_to_look() -> None:
    failure = failure_of(reply(500, error("InternalServerError"), x_request_id="r-1"))
    assert str(failure) == ("the message of InternalServerError (HTTP 500 from http://service/rerank, request r-1)")


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b'{"error": "text"}', b"[1]", b"", b"\xff"])
def test_bodies_of_other_servers_are_shown_as_they_are(body: bytes) -> None:
    failure = failure_of(reply(502, body))
    assert type(failure) is ServiceError
    assert "HTTP 502" in str(failure)


def test_a_long_body_of_another_server_is_cut() -> None:
    assert len(str(failure_of(reply(502, b"x" * 10_000)))) < 300


def test_what_the_service_says_of_waiting_is_kept() -> None:
    failure = failure_of(reply(429, error("BusyError"), retry_after="7"))
    assert isinstance(failure, ServiceUnavailableError)
    assert failure.retry_after_seconds == 7


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("2.5", 2.5), ("", None), ("soon", None), ("-3", None)])
def test_retry_after_is_read_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(reply(429, {}, retry_after=value)) == seconds


def test_retry_after_is_read_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert retry_after_seconds(reply(503, {}, retry_after=later)) == pytest.approx(100, abs=20)
    earlier = format_datetime(datetime.now(UTC) - timedelta(seconds=100), usegmt=True)
    assert retry_after_seconds(reply(503, {}, retry_after=earlier)) == 0.0


def test_no_reply_is_unavailable_or_too_late() -> None:
    lost = failure_without_response(httpx.ConnectError("refused", request=REQUEST))
    late = failure_without_response(httpx.ReadTimeout("", request=REQUEST))
    assert isinstance(lost, ServiceUnavailableError)
    assert "http://service/rerank cannot be reached (ConnectError: refused)" in str(lost)
    assert isinstance(late, DeadlineExceededError)
    assert "did not answer in time (ReadTimeout)" in str(late)


def test_the_tables_of_exceptions_hold_no_entry_that_is_never_reached() -> None:
    assert {failure: type(failure_of(reply(500, error(failure)))) for failure in BY_TYPE} == BY_TYPE
    assert {status: type(failure_of(reply(status, {}))) for status in BY_STATUS} == BY_STATUS
    located = {status for status in range(400, 600) if "HTTP" in str(failure_of(reply(status, {})))}
    assert not located & set(BY_STATUS)
