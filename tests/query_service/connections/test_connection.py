from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from query_service.connections import limits
from tests.query_service.connections.served import LARGE_BYTES, Served, read_ok, read_to_the_end, serving
from tests.waiting import wait_for

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /size HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    with serving(header_seconds=0.2, body_seconds=0.2) as served:
        yield served


@pytest.fixture(scope="module")
def patient() -> Iterator[Served]:
    with serving() as served:
        yield served


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer
    return int(found[1])


def error_of(answer: bytes) -> dict[str, str]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"G", "the headers did not end within 0.2 s"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: b", "the headers did not end within 0.2 s"),
        (POST + b"Content-Length: 10\r\n\r\n", "the body did not come within 0.2 s"),
        (POST + b"Content-Length: 10\r\n\r\nabc", "the body did not come within 0.2 s"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab", "the body did not come within 0.2 s"),
    ],
)
def test_an_unfinished_request_gets_408_and_its_connection_is_closed(hasty: Served, sent: bytes, told: str) -> None:
    answer = hasty.ask(sent)
    assert status_of(answer) == 408
    assert b"connection: close" in answer
    assert error_of(answer) == {"type": "RequestTimeout", "message": told}


def test_a_chunk_whose_line_does_not_end_is_no_matter_of_headers(patient: Served) -> None:
    answer = patient.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * (80 << 10))
    assert status_of(answer) == 400
    assert error_of(answer)["message"].startswith("the line of a chunk's size, or the trailers, are longer than 65536")


def test_a_late_body_is_refused_in_the_dialect_of_its_path_and_a_late_head_in_none(hasty: Served) -> None:
    asked = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    late = json.loads(hasty.ask(asked).partition(b"\r\n\r\n")[2])
    assert (late["error"]["code"], late["message"]) == (408, "the body did not come within 0.2 s")
    with hasty.connect(asked + b"{}") as connection:
        answer = b""
        while b'"bytes"' not in answer:
            answer += connection.recv(1 << 16)
        connection.sendall(b"POST /v1/rer")
        assert error_of(read_to_the_end(connection)).keys() == {"type", "message"}


def test_a_connection_that_says_nothing_is_closed_without_a_word(hasty: Served) -> None:
    assert hasty.ask(b"") == b""


def test_the_time_of_a_head_holds_for_every_request_of_a_connection(hasty: Served) -> None:
    with hasty.connect(GET) as connection:
        assert status_of(read_ok(connection)) == 200
        connection.sendall(b"GET /hea")
        assert status_of(read_to_the_end(connection)) == 408


def test_a_body_that_no_endpoint_reads_is_waited_for_no_longer(hasty: Served) -> None:
    answer = hasty.ask(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
    assert (status_of(answer), answer[-2:]) == (200, b"ok")


def test_drops_of_a_head_or_body_do_not_make_the_time_longer(hasty: Served) -> None:
    for begin, drop in ((b"GET /health HTTP/1.1\r\n", b"a: b\r\n"), (POST + b"Content-Length: 999\r\n\r\n", b"a")):
        with hasty.connect(begin) as connection:
            connection.settimeout(0.02)
            answer = b""
            while not answer:  # ends only because the server does not wait
                connection.sendall(drop)
                try:
                    answer = connection.recv(1 << 16)
                except TimeoutError:
                    continue
            assert status_of(answer) == 408


def test_a_client_that_does_not_read_its_answer_is_given_up(hasty: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SLOWEST_BYTES_PER_SECOND", 1 << 30)
    with hasty.connect(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        assert status_of(connection.recv(1000)) == 200
        wait_for(lambda: not hasty.server.server_state.connections)
        assert len(read_to_the_end(connection)) < LARGE_BYTES


def test_a_slow_client_that_keeps_the_pace_is_served(patient: Served) -> None:
    with patient.connect(POST + b"Content-Length: 4\r\nConnection: close\r\n\r\n") as connection:
        for letter in b"abcd":
            connection.sendall(bytes([letter]))
        assert read_to_the_end(connection).endswith(b'{"bytes":4}')


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "together"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400, "together"),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400, "conflicting Content-Length"),
        (POST + b"Content-Length: 3, 4\r\n\r\nabcd", 400, "conflicting Content-Length"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "bad Content-Length"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "Only Transfer-Encoding: chunked"),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501, "multiple"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "illegal chunk header"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400, "illegal chunk header"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400, "malformed chunk footer"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 5000, 400, "chunks of less than 32 bytes"),
        (b"POST /size HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n", 400, "illegal header line"),
        (b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n", 505, "HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "illegal request line"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 300_000, 431, "longer than 65536 bytes"),
    ],
)
def test_what_is_not_clear_http_is_refused_and_the_connection_closed(
    patient: Served, sent: bytes, status: int, told: str
) -> None:
    answer = patient.ask(sent + GET)  # what follows must not be taken for a request
    assert status_of(answer) == status
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1
    assert told in error_of(answer)["message"]


def test_requests_in_a_row_on_one_connection_are_answered_in_their_order(patient: Served) -> None:
    sizes = [POST + b"Content-Length: %d\r\n\r\n%s" % (size, b"x" * size) for size in (1, 70_000, 3)]
    answer = patient.ask(b"".join(sizes) + CLOSING)
    assert re.findall(rb'\{"bytes":(\d+)\}', answer) == [b"1", b"70000", b"3"]
    assert answer.endswith(b"ok")


def test_a_request_for_an_upgrade_is_answered_as_it_is(patient: Served) -> None:
    for upgrade in (b"websocket", b"h2c"):
        sent = CLOSING.replace(b"Connection: close", b"Connection: Upgrade, close\r\nUpgrade: " + upgrade)
        assert status_of(patient.ask(sent)) == 200


def test_a_client_that_waits_with_its_body_is_told_that_the_answer_is_the_last(patient: Served) -> None:
    answer = patient.ask(b"POST /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    assert status_of(answer) == 200
    assert b"connection: close" in answer
