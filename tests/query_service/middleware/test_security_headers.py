from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from query_service.middleware.security_headers import SecurityHeaders, allow_origins
from tests.query_service.middleware.served import serving, small_app

PAGE = "https://page.example"


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    with serving(SecurityHeaders(small_app())) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/health", "/nowhere"])
def test_every_answer_is_guarded_errors_included(guarded: httpx.Client, path: str) -> None:
    headers = guarded.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)


def test_an_endpoint_may_say_otherwise() -> None:
    own = Route("/", lambda request: PlainTextResponse("", headers={"Referrer-Policy": "same-origin"}))
    with serving(SecurityHeaders(Starlette(routes=[own]))) as client:
        assert client.get("/").headers["referrer-policy"] == "same-origin"


def preflight(client: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return client.options("/search", headers=headers)


@pytest.mark.parametrize("origins", ["", " , "])
def test_without_origins_no_other_page_may_call(origins: str) -> None:
    app = small_app()
    assert allow_origins(app, origins) is app
    with serving(app) as client:
        assert "access-control-allow-origin" not in preflight(client, PAGE).headers
        assert "access-control-allow-origin" not in client.get("/search", headers={"Origin": PAGE}).headers


def test_the_pages_that_are_named_may_call_with_a_key_and_read_our_headers() -> None:
    with serving(allow_origins(small_app(), f"https://other.example, {PAGE}/")) as client:
        allowed = preflight(client, PAGE)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in allowed.headers
        assert preflight(client, "https://evil.example").status_code == 400
        answer = client.get("/search", headers={"Origin": PAGE})
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "server-timing" in answer.headers["access-control-expose-headers"].lower()
