from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from kalm_cache.settings import Settings
from query_service.app import page_router
from query_service.middleware.docs import add_docs
from query_service.middleware.metrics import Metrics
from query_service.middleware.stack import WrappedFastAPI, middleware_stack
from tests.query_service.middleware.served import serving

FORM = {"Content-Type": "application/json"}


def make_app() -> WrappedFastAPI:
    settings = Settings.model_validate({"api_keys": "key", "admin_keys": "root"})
    app = WrappedFastAPI(middleware_stack(settings, Metrics()), docs_url=None, redirect_slashes=False)
    add_docs(app)
    app.include_router(page_router())

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/v1/rerank")
    async def rerank(body: dict[str, int]) -> dict[str, int]:
        return body

    @app.post("/admin/reload")
    async def reload() -> str:
        return "reloaded"

    return app


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with serving(make_app()) as client:
        client.headers["Authorization"] = "Bearer key"
        yield client


@pytest.mark.parametrize("path", ["/", "/health", "/health/", "/docs", "/docs/", "/page/page.css", "/openapi.json/"])
def test_head_is_answered_wherever_get_is_with_the_same_headers_and_no_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    differs = {"x-request-id", "date"}
    assert [item for item in head.headers.items() if item[0] not in differs] == [
        item for item in got.headers.items() if item[0] not in differs
    ]
    assert client.get("/health").json() == "ok"  # the connection goes on


def test_head_of_what_is_only_posted_is_a_405_and_of_nothing_a_404(client: httpx.Client) -> None:
    assert (client.head("/v1/rerank").status_code, client.head("/nowhere").status_code) == (405, 404)


@pytest.mark.parametrize("path", ["/v1/rerank/", "/v1/rerank"])
def test_a_trailing_slash_is_served_and_not_redirected(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json={"a": 1}, headers={"Host": "gateway.example"}, follow_redirects=False)
    assert (answer.status_code, answer.json()) == (200, {"a": 1})


@pytest.mark.parametrize("path", ["/v1/rerank//", "//v1/rerank", "/v1//rerank", "///v1///rerank///", "%2F/v1/rerank"])
def test_several_slashes_are_served_as_one_and_not_redirected(client: httpx.Client, path: str) -> None:
    address = f"{str(client.base_url).rstrip('/')}{'' if path[0] == '/' else '/'}{path}"
    answer = client.post(address, json={"a": 1}, follow_redirects=False)
    assert (answer.status_code, answer.json()) == (200, {"a": 1})


@pytest.mark.parametrize("path", ["/nowhere/", "/health/x/", "/v1rerank", "//other.example/v1/rerank"])
def test_slashes_lead_to_nothing_that_is_not_there(client: httpx.Client, path: str) -> None:
    answer = client.post(f"{str(client.base_url).rstrip('/')}{path}", json={}, follow_redirects=False)
    assert (answer.status_code, "location" in answer.headers) == (404, False)


@pytest.mark.parametrize(
    "path", ["/admin/reload/", "/admin/", "/admin%2Freload", "/admin/reload%2F", "/%2Fadmin/reload", "/admin//reload"]
)
def test_no_spelling_opens_what_needs_an_admin_key(client: httpx.Client, path: str) -> None:
    assert client.post(path).status_code == 403
    assert client.post(path, headers={"Authorization": "Bearer root"}).status_code in (200, 404)
    assert client.post(path, headers={"Authorization": "none"}).status_code == 401


def test_the_docs_page_finds_its_files_under_both_addresses(client: httpx.Client) -> None:
    for address, prefix in (("/docs", "docs/"), ("/docs/", "")):
        page = client.get(address, follow_redirects=False)
        assert page.status_code == 200
        assert f'src="{prefix}start.js"' in page.text
        assert client.get(str(httpx.URL(page.url).join(f"{prefix}start.js"))).status_code == 200


def test_a_wrong_method_is_a_405_that_names_the_right_ones(client: httpx.Client) -> None:
    assert client.post("/health", json={}).headers["allow"] == "GET, HEAD"
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        answer = client.request(method, "/v1/rerank")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_an_absolute_target_is_its_path_and_its_host(client: httpx.Client) -> None:
    address = urlsplit(str(client.base_url))
    for target, status in (("http://x.example/health", 200), ("HTTP://x/health/?a=b", 200), ("http://x", 200),
                           ("http://[x/health", 404), ("ftp://x/health", 404), ("*", 404)):  # fmt: skip
        with socket.create_connection((address.hostname, address.port), 30) as connection:
            head = f"GET {target} HTTP/1.1\r\nHost: y\r\nAuthorization: Bearer key\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(f"HTTP/1.1 {status} ".encode()), target


def behind(prefix: str, app: ASGIApp) -> ASGIApp:
    """As a proxy does that leaves its prefix in the path."""

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"root_path": prefix} if scope["type"] == "http" else scope, receive, send)

    return prefixed


def test_behind_a_prefix_both_spellings_are_served() -> None:
    with serving(behind("/kalm", make_app())) as client:
        for path in ("/kalm/health", "/kalm/health/", "/kalm//health", "/kalm/docs/", "/kalm/"):
            assert (client.get(path).status_code, client.head(path).status_code) == (200, 200), path
