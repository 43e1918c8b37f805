"""`run_server`: an open index -> a service on a port, until a signal. Knows nothing of what the endpoints do."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from kalm_cache.errors import UsageError
from kalm_cache.index import PassageIndex
from kalm_cache.settings import Settings
from query_service.app import create_app
from query_service.documents import DocumentEncoder

logger = logging.getLogger(__name__)


def run_server(index: PassageIndex, settings: Settings, *, encode_documents: bool = True) -> None:
    """Serve an open index until SIGTERM or SIGINT; then finish what was begun, close the index, and return.

    Args:
        index: what is served.
        settings: address (`host`, `port`; 0 = any free one, the log says which), what holds where a
            request does not say, and the model's location where it is not the manifest's.
        encode_documents: score raw documents too; the encoder loads when the first ones come.

    Raises:
        UsageError: the address cannot be bound.
    """
    with index, bind(settings.host, settings.port) as listener:
        model = settings.model if "model" in settings.model_fields_set else None
        documents = DocumentEncoder(index, model) if encode_documents else None
        app = create_app(index, documents, settings)
        index.query_side.warm_up()
        logger.info("serving %d passages on %s (API: /docs)", len(index), address_of(listener))
        serve(app, listener)
    logger.info("stopped: every request that had begun was answered")


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, finish those that were begun, and return."""
    server = make_server(app)
    with _signals_set_exit(server):
        server.run(sockets=[listener])


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server that leaves logging as it is configured: standard output stays empty."""
    return uvicorn.Server(uvicorn.Config(app, log_config=None))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address: who connects now is answered later. The caller closes it.

    Raises:
        UsageError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise UsageError(f"host {host!r} is not an address of this machine: {exc}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as exc:
        listener.close()
        raise UsageError(f"{host}:{port} cannot be bound: {exc}; choose another host or port (0 = any free)") from exc
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_set_exit(server: uvicorn.Server) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into `should_exit` around the server's own handlers.

    uvicorn handles both while it runs, and raises them once more when it has drained: without this, the process would
    end by the signal instead of with 0.
    """

    def set_exit(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, set_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
