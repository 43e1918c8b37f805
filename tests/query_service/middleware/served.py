"""A small application behind middleware, on a real server on a loopback port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from query_service.middleware.request_log import note_answer, note_query


async def size_of_body(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def item(request: Request) -> Response:
    note_query("who found penicillin?")
    note_answer("000007", {"queue": 1.5, "decode": 20.0})
    return JSONResponse({"id": request.path_params["id"]})


async def fail(request: Request) -> Response:
    raise RuntimeError("this endpoint fails")


def small_app() -> Starlette:
    paths = ("/", "/health", "/ready", "/metrics", "/search", "/page/app.js", "/admin", "/admin/reload", "/admins")
    open_paths = [Route(path, lambda request: PlainTextResponse("ok"), methods=["GET", "POST"]) for path in paths]
    return Starlette(
        routes=[
            *open_paths,
            Route("/size", size_of_body, methods=["POST"]),
            Route("/items/{id}", item),
            Route("/fail", fail),
        ]
    )


@contextmanager
def serving(app: ASGIApp) -> Iterator[httpx.Client]:
    """A client of the app behind a server of its own, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, loop="asyncio", http="h11", log_config=None, lifespan="off"))
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it, each answer waits 40 ms for an ACK
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
