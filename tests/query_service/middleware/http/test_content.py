from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator

import httpx
import pytest

from kalm_cache.settings import Settings
from query_service.api.errors import add_error_handlers
from query_service.middleware.metrics import Metrics
from query_service.middleware.stack import WrappedFastAPI, middleware_stack
from tests.query_service.middleware.served import serving

LIMIT = 300_000
BODY = json.dumps({"text": "bees " * 1000}).encode()
JSON = {"Content-Type": "application/json"}
GZIP = JSON | {"Content-Encoding": "gzip"}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    app = WrappedFastAPI(middleware_stack(Settings(max_body_bytes=LIMIT), Metrics()))
    add_error_handlers(app)

    @app.post("/echo")
    async def echo(body: dict[str, str]) -> dict[str, str]:
        return body

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/reload")
    async def reload() -> str:
        return "reloaded"

    with serving(app) as client:
        yield client


def pieces(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; Charset=UTF-8",
        'application/json; charset="utf-8"',
        "application/vnd.api+json",
        "application/json;charset=us-ascii",
    ],
)
def test_json_is_taken_under_all_its_names(client: httpx.Client, kind: str) -> None:
    assert client.post("/echo", content=BODY, headers={"Content-Type": kind}).json() == json.loads(BODY)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/x-ndjson",
        "json",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
    ],
)
def test_other_types_are_a_415_that_names_the_header_and_says_what_to_send(
    client: httpx.Client, kind: str | None
) -> None:
    answer = client.post("/echo", content=BODY, headers={} if kind is None else {"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["type"]) == (415, "UnsupportedMediaType")
    message = answer.json()["error"]["message"]
    assert "Content-Type" in message
    assert "application/json" in message or "UTF-8" in message


def test_two_types_are_none(client: httpx.Client) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Type", "text/plain")]
    assert client.post("/echo", content=BODY, headers=headers).status_code == 415


def test_what_has_no_body_needs_no_type(client: httpx.Client) -> None:
    assert client.post("/reload").json() == "reloaded"
    assert client.post("/reload", content=b"").json() == "reloaded"
    assert client.post("/echo", headers=JSON).status_code == 422
    assert client.request("GET", "/health", content=b"x").json() == "ok"  # nobody reads it


def test_unknown_paths_and_wrong_methods_say_so_and_nothing_of_types(client: httpx.Client) -> None:
    assert client.post("/nowhere", content=BODY).status_code == 404
    assert client.put("/echo", content=BODY).status_code == 405


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
@pytest.mark.parametrize(
    ("coding", "coded"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("X-Gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", zlib.compress(BODY)),
        ("identity", BODY),
    ],
)
def test_a_compressed_body_is_taken_in_one_piece_or_many(
    client: httpx.Client, coding: str, coded: bytes, size: int
) -> None:
    headers = JSON | {"Content-Encoding": coding}
    for content in (coded, pieces(coded, size)):
        assert client.post("/echo", content=content, headers=headers).json() == json.loads(BODY)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "gzip;q=1", "nonsense"])
def test_other_codings_are_a_415_that_names_the_header_and_what_is_taken(client: httpx.Client, coding: str) -> None:
    answer = client.post("/echo", content=BODY, headers=JSON | {"Content-Encoding": coding})
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["error"]["message"]
    assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("size", [LIMIT - 20, LIMIT - 12])
def test_the_limit_holds_for_the_body_as_it_is_and_not_as_it_is_sent(client: httpx.Client, size: int) -> None:
    for given, status in ((size, 200), (LIMIT + size, 413)):
        body = json.dumps({"text": "x" * given}).encode()
        content = gzip.compress(body, mtime=0)
        assert len(content) < 2000
        answer = client.post("/echo", content=content, headers=GZIP)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["type"] == "BodyTooLarge"


def test_a_bomb_is_given_up_at_the_limit(client: httpx.Client) -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)  # 64 MB in 64 KB
    assert client.post("/echo", content=bomb, headers=GZIP).status_code == 413


@pytest.mark.parametrize(
    "coded",
    [
        BODY,
        gzip.compress(BODY, mtime=0)[:-5],
        gzip.compress(BODY, mtime=0)[:12],
        gzip.compress(BODY, mtime=0) + b"more",
        gzip.compress(BODY, mtime=0) + gzip.compress(b"{}", mtime=0),
        gzip.compress(BODY, mtime=0)[:-8] + bytes(8),  # its checksum
        zlib.compress(BODY),
    ],
)
def test_what_is_not_what_its_coding_says_is_a_400(client: httpx.Client, coded: bytes) -> None:
    for content in (coded, pieces(coded, 10)):
        answer = client.post("/echo", content=content, headers=GZIP)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "MalformedBody")


def test_compressed_bytes_that_make_nothing_are_bounded_too(client: httpx.Client) -> None:
    endless_name = b"\x1f\x8b\x08\x08\0\0\0\0\0\x03" + b"n" * (LIMIT + 1)
    for content in (endless_name, pieces(endless_name, 50_000)):
        assert client.post("/echo", content=content, headers=GZIP).status_code == 413
