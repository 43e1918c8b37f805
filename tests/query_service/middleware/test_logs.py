from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from query_service.middleware.logs import Repetitions

SERVICE = """
import logging, sys, threading, warnings
import httpx
from query_service.middleware.logs import configure_logging
from query_service.middleware.request_log import RequestLog
from tests.query_service.middleware.served import serving, small_app

configure_logging(sys.argv[1])
logging.getLogger("kalm_cache.index.passage_index").info("two\\nlines, %s", "ünïcode")
logging.getLogger("kalm_cache.index.passage_index").debug("not shown")
logging.getLogger("some.library").warning("a warning of a library")
logging.getLogger("some.library").info("not shown")
with serving(RequestLog(small_app())) as client:
    headers = {"X-Request-Id": "the-id", "Authorization": "Bearer the-key"}
    assert client.get("/items/1?query=the-query", headers=headers).status_code == 200
    assert client.get("/fail", headers=headers).status_code == 500
"""


def logged(log_format: str) -> list[str]:
    """The lines of a service that runs in a process of its own; standard output stays empty."""
    result = subprocess.run([sys.executable, "-c", SERVICE, log_format], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "the-key" not in result.stderr
    assert "the-query" not in result.stderr
    assert "not shown" not in result.stderr
    return result.stderr.splitlines()


@pytest.fixture(scope="module")
def json_lines() -> list[dict[str, object]]:
    return [json.loads(line) for line in logged("json")]


def test_every_line_of_all_loggers_is_one_json_object(json_lines: list[dict[str, object]]) -> None:
    by_logger = {str(line["logger"]) for line in json_lines}
    ours = {"kalm_cache.index.passage_index", "query_service.middleware.request_log"}
    assert ours | {"some.library", "uvicorn.error"} <= by_logger
    for line in json_lines:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        assert datetime.fromisoformat(str(line["time"])).utcoffset() is not None
    assert json_lines[0]["message"] == "two\nlines, ünïcode"


def test_lines_within_a_request_carry_its_id_and_others_none(json_lines: list[dict[str, object]]) -> None:
    access = [line for line in json_lines if "status" in line]
    assert [(line["request_id"], line["path"], line["status"]) for line in access] == [
        ("the-id", "/items/{id}", 200),
        ("the-id", "/fail", 500),
    ]
    assert access[0]["timings_ms"] == {"queue": 1.5, "decode": 20.0}
    assert "request_id" not in json_lines[0]


def test_an_unexpected_error_is_logged_with_its_traceback_and_request_id(json_lines: list[dict[str, object]]) -> None:
    (line,) = [line for line in json_lines if "exception" in line]
    assert (line["level"], line["request_id"]) == ("ERROR", "the-id")
    assert "RuntimeError: this endpoint fails" in str(line["exception"])


def test_there_is_one_access_line_a_request_and_none_of_the_server(json_lines: list[dict[str, object]]) -> None:
    assert not [line for line in json_lines if line["logger"] == "uvicorn.access"]
    assert len([line for line in json_lines if "ms" in line]) == 2


def test_text_lines_are_for_people() -> None:
    lines = logged("text")
    assert lines[0].endswith("INFO two\\nlines, ünïcode")
    assert any("GET /items/{id} 200" in line and line.endswith("[the-id]") for line in lines)
    assert any(line.endswith("WARNING a warning of a library") for line in lines)
    assert "RuntimeError: this endpoint fails" in lines


def test_equal_warnings_of_the_server_are_logged_ten_times_a_minute_and_then_counted() -> None:
    seconds = [0.0]
    repetitions = Repetitions(lambda: seconds[0])

    def passed(message: str, level: int = logging.WARNING) -> str | None:
        record = logging.LogRecord("uvicorn.error", level, "", 0, message, None, None)
        return record.getMessage() if repetitions.filter(record) else None

    assert [passed("no HTTP") for _ in range(13)] == ["no HTTP"] * 10 + [None] * 3
    assert passed("another one") == "another one"
    assert passed("no HTTP", logging.ERROR) == "no HTTP"
    seconds[0] = 60.0
    assert passed("no HTTP") == "no HTTP (3 more like this were not logged)"
    assert passed("no HTTP") == "no HTTP"
