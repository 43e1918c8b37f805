"""`run_server`: an index folder -> a service on a port, until a signal. Knows nothing of what the endpoints do."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from kalm_cache.errors import UsageError
from kalm_cache.index.from_settings import open_index
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import require_short
from kalm_cache.settings import Settings
from kalm_cache.stopping import is_stopping, signals_call
from kalm_cache.system import raise_open_files_limit
from query_service.app import create_app
from query_service.connections.limits import ConnectionLimits
from query_service.connections.listener import turn_away
from query_service.connections.server import Server
from query_service.engine.live import LiveIndex
from query_service.engine.service import Service
from query_service.middleware.logs import configure_logging
from query_service.workers import run_workers

logger = logging.getLogger(__name__)


def run_server(folder: Path, settings: Settings) -> None:
    """Serve the live generation of an index until SIGTERM or SIGINT; then finish what was begun, and return.

    Args:
        folder: of the index.
        settings: address (`host`, `port`; 0 = any free one, the log says which), limits, keys, and what holds where a
            request does not say.

    Raises:
        UsageError: the address cannot be bound, or a key file cannot be read.
        KalmCacheError: the index cannot be opened.
    """
    configure_logging(settings.log_format)
    raise_open_files_limit()  # an index has files, and a swap has those of two
    # oneDNN keeps a compiled product for every shape: by default 1,024 of them, a gigabyte in bfloat16; of a demo's two
    # hundred queries there are some 250
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    with bind(settings.host, settings.port) as listener:
        if settings.workers > 1:
            work = partial(_serve_folder, folder, settings, listener)
            run_workers(folder, settings, work, lambda: _stop_listening(listener))
        else:
            _serve_folder(folder, settings, listener, None)
    logger.info("stopped: every request that had begun was answered")


def open_service(folder: Path, settings: Settings, reuse_from: PassageIndex | None = None) -> Service:
    """A service over the live generation of `folder`; `reuse_from` as in `PassageIndex.open`. Errors as there."""
    live = LiveIndex(
        folder,
        lambda before: open_index(folder, settings, before or reuse_from),
        with_encoder=settings.with_encoder,
        model=settings.model if "model" in settings.model_fields_set else None,
    )
    for name in ("instruction", "system_instruction"):
        tokenizer = live.served.index.query_side.tokenizer
        require_short(tokenizer, getattr(settings, name), settings.max_instruction_tokens, name)
    return Service(live, settings)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, finish those that were begun, and return."""
    with _signals_set_exit(server):
        server.run(sockets=[listener])


def make_server(app: FastAPI, limits: ConnectionLimits | None = None) -> Server:
    """A server of an application that alone listens on its sockets."""
    return Server(app, limits or ConnectionLimits())


def _serve_folder(folder: Path, settings: Settings, listener: socket.socket, reuse_from: PassageIndex | None) -> None:
    service = open_service(folder, settings, reuse_from)
    app = create_app(service)
    logger.info("serving %d passages on %s (API: /docs)", len(service.live.served.index), address_of(listener))
    serve(Server(app, ConnectionLimits.from_settings(settings), shares_socket=settings.workers > 1), listener)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on the address: who connects now is answered later. The caller closes it.

    Raises:
        UsageError: the address cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # the protocol by name: asyncio sets TCP_NODELAY on no other socket, and answers would wait 40 ms for an ACK
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def _stop_listening(listener: socket.socket) -> None:
    turn_away(listener)
    listener.close()


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _signals_set_exit(server: uvicorn.Server) -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into `should_exit` around the server's own handlers.

    uvicorn handles both while it runs, and raises them once more when it has drained: without this, the process would
    end by the signal instead of with 0.
    """

    def set_exit(*_: object) -> None:
        server.should_exit = True

    with signals_call(set_exit):
        server.should_exit = is_stopping()  # one that came before, and that a library swallowed
        yield
