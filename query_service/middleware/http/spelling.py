"""One path and one method for requests that are spelt in several ways. Knows nothing of what routes answer."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class PlainSpelling:
    """Lets routes see `/path` for `/path/`, `//path` and `http://host/path`, and GET for HEAD, without its body.

    A redirect would do for slashes only where the client sees the service under its own name: behind a proxy with a
    prefix, it leads elsewhere, and `//path` is another host.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _take_target(scope)
        scope["path"] = re.sub("/{2,}", "/", scope["path"])  # as clients make of a base URL that ends in a slash
        if scope["path"].endswith("/") and not _has_route(scope):
            scope["path"] = scope["path"].removesuffix("/")
        send = _with_head_allowed(send)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._app(scope, receive, send)


def _take_target(scope: Scope) -> None:
    """Of an absolute target (RFC 9112, 3.2.2), take the path, and its host in place of the header's."""
    target = scope.get("raw_path", b"").decode("ascii", "replace")
    if not target.lower().startswith(("http://", "https://")):
        return
    try:
        parts = urlsplit(target)
    except ValueError:
        return  # not an address: no route has it
    scope["path"] = unquote(parts.path) or "/"
    MutableHeaders(scope=scope)["host"] = parts.netloc.rpartition("@")[2]


def _has_route(scope: Scope) -> bool:
    routes = getattr(scope.get("app"), "routes", ())
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


def _with_head_allowed(send: Send) -> Send:
    async def with_head(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            headers = MutableHeaders(scope=message)
            methods = headers.get("allow", "").split(", ")
            if "GET" in methods and "HEAD" not in methods:
                headers["allow"] = ", ".join([*methods, "HEAD"])
        await send(message)

    return with_head


def _without_body(send: Send) -> Send:
    async def head_only(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return head_only
