"""The API's description as a page at `/docs`, without outside assets or inline scripts. Knows nothing of the API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse, Response

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>kalm-cache API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{docs}swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{docs}swagger-ui-bundle.js"></script>
<script src="{docs}start.js"></script>
</body>
</html>
"""
START = """SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  deepLinking: true,
  validatorUrl: null,
});
"""
ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
CACHED = {"Cache-Control": "max-age=86400"}


def add_docs(app: FastAPI) -> None:
    """Serve `/docs` and its files. The application is made with `docs_url=None, redoc_url=None`."""
    folder = _assets_folder()
    _describe_keys(app)

    def page(docs: str) -> Callable[[], Awaitable[Response]]:
        async def send() -> Response:
            return HTMLResponse(PAGE.replace("{docs}", docs))

        return send

    async def start() -> Response:
        return Response(START, media_type="text/javascript")

    app.get("/docs", include_in_schema=False)(page("docs/"))
    app.get("/docs/", include_in_schema=False)(page(""))  # addresses in a page are relative to it
    app.get("/docs/start.js", include_in_schema=False)(start)
    for name, media_type in ASSETS.items():
        app.get(f"/docs/{name}", include_in_schema=False)(_file(folder / name, media_type))


def _describe_keys(app: FastAPI) -> None:
    """Say in the description that a key may be asked for: the page gets a field for it."""
    plain = app.openapi

    def with_keys() -> dict[str, Any]:
        description = plain()
        description.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{}, {"key": []}]
        return description

    app.openapi = with_keys  # type: ignore[method-assign]


def _file(path: Path, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send_file() -> Response:
        return FileResponse(path, media_type=media_type, headers=CACHED)

    return send_file


def _assets_folder() -> Path:
    """Swagger UI's files as the package fastapi-offline brings them; its code is not used."""
    spec = find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None, "fastapi-offline is among the dependencies"
    return Path(spec.origin).parent / "static"
