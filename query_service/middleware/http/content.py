"""How a body is coded: its type and its compression. Knows nothing of what bodies hold."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from email.message import EmailMessage

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query_service.middleware.refusal import refusal

PIECE_BYTES = 64 << 10
CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})  # where they bring a body, nobody reads it
CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


class CodedBodies:
    """Inflates gzip and deflate piece by piece, and refuses with 415 what is coded otherwise or is not JSON.

    What it hands on is as large as the body is: the limit on bodies belongs within. What a route answers that is not
    there, or has another method, is the route's to say.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not _has_body(scope) or not _is_for_a_route(scope):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        coding = headers.get("content-encoding", "identity").strip().lower()
        refused = _wrong_type(scope, headers) or _wrong_coding(scope, coding)
        if refused is not None:
            await refused(scope, receive, send)
        elif coding == "identity":
            await self._app(scope, receive, send)
        else:
            await self._inflate(scope, _Inflating(receive, CODINGS[coding]), send)

    async def _inflate(self, scope: Scope, inflating: _Inflating, send: Send) -> None:
        """Run the application on what the body really is; where that cannot be told, the answer is a 400."""
        scope["headers"] = [
            header for header in scope["headers"] if header[0] not in (b"content-encoding", b"content-length")
        ]

        async def unless_broken(message: Message) -> None:
            if not inflating.broken:
                await send(message)

        try:
            await self._app(scope, inflating.receive, unless_broken)
        except Exception:
            if not inflating.broken:
                raise
        if inflating.broken:
            message = "the body is not what its Content-Encoding says"
            await refusal(scope, 400, "MalformedBody", message)(scope, inflating.receive, send)


class _BrokenCodingError(Exception):
    """The body is not coded as its header says."""


class _Inflating:
    """A `receive` that gives the body in clear, in pieces of a bounded size."""

    def __init__(self, receive: Receive, window_bits: int) -> None:
        self._receive = receive
        self._inflater = zlib.decompressobj(window_bits)
        self._pieces: Iterator[bytes] = iter(())
        self._more, self._ended = True, False
        self.broken = False

    async def receive(self) -> Message:
        """As ASGI's `receive`."""
        if self._ended:
            return await self._receive()
        while not (piece := self._next_piece()) and self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._more = message.get("more_body", False)
            self._pieces = self._inflated(message.get("body", b""))
        await asyncio.sleep(0)  # a megabyte may come of a kilobyte: others have their turn between
        self._ended = not piece
        return {"type": "http.request", "body": piece, "more_body": not self._ended}

    def _next_piece(self) -> bytes:
        """Empty where what came so far is used up. Raises `_BrokenCodingError`."""
        try:
            piece = next(self._pieces, b"")
        except zlib.error as exc:
            self.broken = True
            raise _BrokenCodingError from exc
        if not piece and not self._more and not self._inflater.eof:
            self.broken = True
            raise _BrokenCodingError
        return piece

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        full = True
        while (data or full) and not self._inflater.eof:
            piece = self._inflater.decompress(data, PIECE_BYTES)
            data, full = self._inflater.unconsumed_tail, len(piece) == PIECE_BYTES
            if piece:
                yield piece
        if data or self._inflater.unused_data:
            raise zlib.error("bytes after the end")


def _has_body(scope: Scope) -> bool:
    if scope["method"] in BODILESS:
        return False
    headers = Headers(scope=scope)
    return headers.get("content-length", "0").strip("0 ") != "" or "transfer-encoding" in headers


def _is_for_a_route(scope: Scope) -> bool:
    routes = getattr(scope.get("app"), "routes", ())
    return any(route.matches(scope)[0] is Match.FULL for route in routes)


def _wrong_type(scope: Scope, headers: Headers) -> Response | None:
    given = headers.getlist("content-type")
    described = EmailMessage()
    described["Content-Type"] = given[0] if len(given) == 1 else "none/none"
    kind, charset = described.get_content_type(), described.get_content_charset("utf-8")
    if not (kind.startswith("application/") and kind.removeprefix("application/").split("+")[-1] == "json"):
        what = f"is {given[0][:100]!r}" if given else "is missing"
        return _unsupported(scope, f"the header Content-Type {what}; send Content-Type: application/json")
    if charset not in CHARSETS:
        return _unsupported(scope, f"the header Content-Type names the charset {charset[:100]!r}; send JSON in UTF-8")
    return None


def _wrong_coding(scope: Scope, coding: str) -> Response | None:
    if coding == "identity" or coding in CODINGS:
        return None
    message = f"the header Content-Encoding is {coding[:100]!r}; send the body as it is, or in gzip or deflate"
    return _unsupported(scope, message, {"Accept-Encoding": "gzip, deflate"})


def _unsupported(scope: Scope, message: str, headers: dict[str, str] | None = None) -> Response:
    return refusal(scope, 415, "UnsupportedMediaType", message, headers)
