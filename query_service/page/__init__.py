"""The search page at `/`: one HTML file with its style and scripts. Knows nothing of indexes: it asks the API.

The files are read when the router is made and served under fixed names: no request's path reaches the file system.
Addresses in them are relative, so that the page also works under a proxy's prefix.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request, Response

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SCRIPTS = ("page", "answer", "api", "dom", "keys", "links", "theme", "why")
MEDIA_TYPES = {
    "index.html": "text/html",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
    **{f"{name}.js": "text/javascript" for name in SCRIPTS},
}


def page_router() -> APIRouter:
    """Routes of the page and its files."""
    router = APIRouter(include_in_schema=False)
    for name, media_type in MEDIA_TYPES.items():
        path = "/" if name == "index.html" else f"/page/{name}"
        content = files(__package__).joinpath(name).read_bytes()
        router.get(path)(_sender(content, media_type))
    return router


def _sender(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "no-cache",  # asked for each time, sent when it changed
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "ETag": tag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def send(request: Request) -> Response:
        if _names(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return send


def _names(if_none_match: str, tag: str) -> bool:
    """Whether the client has this very content; proxies that compress make a tag weak (RFC 9110, 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return tag in given or "*" in given
