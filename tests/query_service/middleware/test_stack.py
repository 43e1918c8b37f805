from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response

from kalm_cache.errors import UsageError
from kalm_cache.settings import Settings
from query_service.api.errors import add_error_handlers
from query_service.middleware.docs import add_docs
from query_service.middleware.metrics import CONTENT_TYPE, Metrics
from query_service.middleware.security_headers import HEADERS
from query_service.middleware.stack import WrappedFastAPI, middleware_stack
from tests.query_service.middleware.served import serving

PAGE = "https://page.example"
SETTINGS = {"api_keys": "alpha", "admin_keys": "root", "cors_origins": PAGE, "max_body_bytes": 100}
KEY = {"Authorization": "Bearer alpha"}


def make_app(settings: Settings) -> FastAPI:
    metrics = Metrics()
    app = WrappedFastAPI(middleware_stack(settings, metrics), docs_url=None, redoc_url=None)
    add_error_handlers(app)
    add_docs(app)

    @app.get("/metrics")
    async def rendered() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    @app.post("/echo")
    async def echo(body: dict[str, str]) -> dict[str, str]:
        return body

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("this endpoint fails")

    return app


@pytest.fixture(scope="module")
def stacked() -> Iterator[httpx.Client]:
    with serving(make_app(Settings.model_validate(SETTINGS))) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("POST", "/echo", KEY, b'{"a": "b"}', 200),
        ("POST", "/echo", {}, b"{}", 401),
        ("POST", "/admin/reload", KEY, b"", 403),
        ("GET", "/nowhere", KEY, b"", 404),
        ("GET", "/echo", KEY, b"", 405),
        ("POST", "/echo", KEY, b'{"a": "' + b"x" * 100 + b'"}', 413),
        ("POST", "/echo", KEY, b"[]", 422),
        ("GET", "/fail", KEY, b"", 500),
    ],
)
def test_answers_of_every_origin_have_an_id_guards_and_one_shape(
    stacked: httpx.Client, method: str, path: str, headers: dict[str, str], content: bytes, status: int
) -> None:
    sent = {"Content-Type": "application/json", "X-Request-Id": "the-id", "Origin": PAGE, **headers}
    answer = stacked.request(method, path, headers=sent, content=content)
    assert answer.status_code == status
    assert answer.headers["x-request-id"] == "the-id"
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert all(answer.headers[name] == value for name, value in HEADERS.items())
    if status != 200:
        assert set(answer.json()["error"]) == {"type", "message"}


def test_all_of_them_are_counted(stacked: httpx.Client) -> None:
    for headers in ({}, KEY):
        stacked.get("/fail", headers=headers)
    rendered = stacked.get("/metrics", headers=KEY).text
    for status in ("401", "500"):
        assert f'kalm_cache_requests_total{{method="GET",path="/fail",status="{status}"}}' in rendered


def test_a_large_body_without_a_key_is_a_401_and_is_not_read(stacked: httpx.Client) -> None:
    assert stacked.post("/echo", content=b"x" * 1000).status_code == 401


def test_a_browsers_preflight_needs_no_key(stacked: httpx.Client) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    assert stacked.options("/echo", headers=headers).status_code == 200


def test_a_bad_key_file_ends_the_start_not_a_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="admin_keys_file"):
        make_app(Settings(admin_keys_file=tmp_path / "nowhere"))


def test_the_docs_page_works_without_a_key_and_without_anything_from_outside(stacked: httpx.Client) -> None:
    page = stacked.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"https?://|<script>|\son\w+=", page.text)
    for name in re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text):
        asset = stacked.get(f"/{name}")
        assert asset.status_code == 200
        assert asset.headers["content-type"].split(";")[0] in ("text/javascript", "text/css")
    description = stacked.get("/openapi.json").json()
    assert description["openapi"].startswith("3.")
    assert {*description["paths"]} == {"/metrics", "/echo", "/fail"}
    assert description["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
