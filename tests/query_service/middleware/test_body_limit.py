from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from query_service.middleware import body_limit
from query_service.middleware.body_limit import BodyLimit
from tests.query_service.middleware.served import serving, small_app

LIMIT = 1000


class Body(BaseModel):
    text: str


@pytest.fixture(scope="module")
def limited() -> Iterator[httpx.Client]:
    with serving(BodyLimit(small_app(), LIMIT)) as client:
        yield client


def chunks(size: int, chunk: int = 100) -> Iterator[bytes]:
    for start in range(0, size, chunk):
        yield b"x" * min(chunk, size - start)


@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_body_up_to_the_limit_arrives_whole(limited: httpx.Client, size: int) -> None:
    assert limited.post("/size", content=b"x" * size).json() == {"bytes": size}
    assert limited.post("/size", content=chunks(size)).json() == {"bytes": size}


@pytest.mark.parametrize("size", [LIMIT + 1, 50_000])
def test_a_body_above_the_limit_gets_413_declared_or_not(limited: httpx.Client, size: int) -> None:
    for content in (b"x" * size, chunks(size)):
        answer = limited.post("/size", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "BodyTooLarge"
        assert "1000 bytes" in answer.json()["error"]["message"]


def test_a_client_that_goes_on_writing_megabytes_still_sees_the_answer(limited: httpx.Client) -> None:
    assert limited.post("/size", content=b"x" * (8 << 20)).status_code == 413
    assert limited.post("/size", content=chunks(8 << 20, 1 << 16)).status_code == 413


@pytest.mark.parametrize("value", ["9" * 5000, "00001001", "1001"])
def test_large_lengths_are_refused_without_the_body(limited: httpx.Client, value: str) -> None:
    assert raw(limited, f"Content-Length: {value}").startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "+5", "0x10", "5, 6"])
def test_lengths_that_are_no_number_get_400(limited: httpx.Client, value: str) -> None:
    assert raw(limited, f"Content-Length: {value}").startswith(b"HTTP/1.1 400")


def test_a_length_that_the_server_let_through_is_checked_again() -> None:
    import anyio

    sent: list[Message] = []

    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the application ran")

    async def call(value: bytes) -> int:
        sent.clear()

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        headers = [(b"content-length", value)]
        await BodyLimit(never, LIMIT)(
            {"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send
        )
        return int(sent[0]["status"])

    assert [anyio.run(call, value) for value in (b"abc", b"-1", b"\xb2", b"", b"1001", b"9" * 5000)] == [
        400, 400, 400, 400, 413, 413,
    ]  # fmt: skip


def test_what_fastapi_makes_of_the_cut_body_is_not_the_answer() -> None:
    app = FastAPI()

    @app.post("/parse")
    async def parse(body: Body) -> int:
        return len(body.text)

    with serving(BodyLimit(app, LIMIT)) as client:
        assert client.post("/parse", json={"text": "x" * 900}).json() == 900
        body = b'{"text": "' + b"x" * 5000 + b'"}'
        for content in (body, iter([body[:500], body[500:]])):
            answer = client.post("/parse", content=content, headers={"Content-Type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["type"]) == (413, "BodyTooLarge")


def test_no_more_than_the_limit_reaches_the_application() -> None:
    seen = 0

    async def greedy(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        more = True
        while more:
            message = await receive()
            seen += len(message.get("body", b""))
            more = message.get("more_body", False)

    with serving(BodyLimit(greedy, LIMIT)) as client:
        assert client.post("/", content=chunks(1 << 20, 400)).status_code == 413
    assert seen <= LIMIT


def test_the_connection_lives_on_after_a_body_within_the_limit(limited: httpx.Client) -> None:
    assert "connection" not in limited.post("/size", content=b"x").headers
    assert limited.post("/size", content=b"x" * (LIMIT + 1)).headers["connection"] == "close"


def raw(client: httpx.Client, header: str) -> bytes:
    """The answer to a request whose one header is what it is."""
    address = urlsplit(str(client.base_url))
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(f"POST /size HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())
        return connection.recv(1000)


def test_of_large_bodies_only_some_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "BODIES", 1)
    monkeypatch.setattr(body_limit, "SMALL_BYTES", 100)
    entered, go_on = Event(), Event()

    async def held(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        size = len(await request.body())
        if scope["path"] == "/held":
            entered.set()
            await asyncio.to_thread(go_on.wait, 60)
        await Response(str(size))(scope, receive, send)

    with serving(BodyLimit(held, LIMIT)) as client, ThreadPoolExecutor() as threads:
        first = threads.submit(client.post, "/held", content=b"x" * LIMIT)
        assert entered.wait(60)
        refused = client.post("/", content=b"x" * 200)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "BusyError")
        assert refused.headers["retry-after"] == "1"
        assert client.post("/", content=b"x" * 100).text == "100"
        go_on.set()
        assert first.result().text == str(LIMIT)
        assert client.post("/", content=b"x" * 200).text == "200"
