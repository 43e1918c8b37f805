"""`run_server`: an index folder, or a model alone -> a service on a port, until a signal.

Knows nothing of what the endpoints do.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

from kalm_cache.errors import UsageError
from kalm_cache.index.from_settings import open_index, open_text_cache
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.gpus import worker_gpus
from kalm_cache.model.prompts import require_short
from kalm_cache.process.stopping import is_stopping, signals_call
from kalm_cache.process.system import raise_open_files_limit
from kalm_cache.settings import Settings, idle_settings
from kalm_cache.storage.text_cache.text_cache import TextCache
from query_service.app import create_app
from query_service.connections.limits import ConnectionLimits
from query_service.connections.listener import turn_away
from query_service.connections.server import Server
from query_service.engine.documents import DocumentEncoder
from query_service.engine.live import LiveIndex, LiveModel, Served
from query_service.engine.served import load_model
from query_service.engine.service import Service
from query_service.middleware.logs import configure_logging
from query_service.router.addresses import Addresses
from query_service.router.over_http import OverHttp
from query_service.router.service import Router
from query_service.workers import run_workers

_T = TypeVar("_T")
logger = logging.getLogger(__name__)


def run_server(folder: Path | None, settings: Settings, refresh: Callable[[], object] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was begun, and return.

    Args:
        folder: of the index whose live generation is served; `None`: the settings' model scores texts alone.
        settings: address (`host`, `port`; 0 = any free one, the log says which), limits, keys, and what holds where a
            request does not say.
        refresh: brings the folder to what is published elsewhere; called before each look for a new generation.

    Raises:
        UsageError: the address cannot be bound, a key file cannot be read, or settings contradict each other.
        KalmCacheError: the index or the model cannot be opened.
    """
    check_text_settings(folder, settings)
    configure_logging(settings.log_format)
    for name in idle_settings(settings):
        logger.warning("%s has no effect: there is no text cache; name its folder (--text-cache)", name)
    prepare_process()
    with bind(settings.host, settings.port) as listener:
        if folder is None:
            _run(settings, listener, lambda: load_served(settings), open_text_service)
        else:
            _run(
                settings,
                listener,
                lambda: _load_index(folder, settings),
                partial(open_service, folder, refresh=refresh),
            )
    logger.info("stopped: every request that had begun was answered")


def run_router(addresses: Addresses, settings: Settings) -> None:
    """Serve the answers of services of shards, until SIGTERM or SIGINT; then finish what was begun, and return.

    Args:
        addresses: of these services.
        settings: as in `run_server`; those of models and indexes are the services'.

    Raises:
        UsageError: as `run_server`.
    """
    configure_logging(settings.log_format)
    raise_open_files_limit()
    settings = settings.model_copy(update={"device": "cpu"})  # nothing is computed here
    key = settings.shard_api_key.get_secret_value()
    with bind(settings.host, settings.port) as listener:
        _run(settings, listener, lambda: None, lambda own, _: Router(OverHttp(addresses, key), own))
    logger.info("stopped: every request that had begun was answered")


def prepare_process() -> None:
    """What a process that serves an index needs, before it computes."""
    raise_open_files_limit()  # an index has files, and a swap has those of two
    # oneDNN keeps a compiled product for every shape: by default 1,024 of them, a gigabyte in bfloat16; of a demo's two
    # hundred queries there are some 250
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def check_text_settings(folder: Path | None, settings: Settings) -> None:
    """Raise `UsageError` where there is nothing to serve, or texts are to be cached and not encoded."""
    if folder is None and not settings.text_cache:
        raise UsageError("nothing to serve: give --index FOLDER, or --text-cache FOLDER to score texts alone")
    if settings.text_cache and "with_encoder" in settings.model_fields_set and not settings.with_encoder:
        raise UsageError("a text cache needs the encoder: leave --without-encoder (with_encoder = false) out")


def open_service(
    folder: Path,
    settings: Settings,
    reuse_from: PassageIndex | None = None,
    refresh: Callable[[], object] = lambda: None,
) -> Service:
    """A service over the live generation of `folder`; `reuse_from` as in `PassageIndex.open`. Errors as there.

    `refresh` as in `LiveIndex`.
    """
    text_cache = open_text_cache(settings)
    live = LiveIndex(
        folder,
        lambda before: open_index(folder, settings, before or reuse_from),
        with_encoder=settings.with_encoder or text_cache is not None,
        model=settings.model if "model" in settings.model_fields_set else None,
        text_cache=text_cache,
        refresh=refresh,
        keep_previous=settings.served_shards is not None,
    )
    return _service(live, settings, text_cache)


def open_text_service(settings: Settings, reuse_from: Served | None = None) -> Service:
    """A service that scores texts with the settings' model, and has no index.

    Args:
        settings: `model`, how texts are encoded, `text_cache`.
        reuse_from: of `load_served`, for these settings.

    Raises:
        CheckpointError: the model is missing or incomplete.
        UsageError: a setting that does not fit the model.
    """
    if settings.shared_prefix is not None:
        raise UsageError(
            f"shared_prefix = {settings.shared_prefix!r} is over passages of an index, and there is none: "
            "give --index, or leave it out"
        )
    if settings.prefix_cache_gib:
        logger.warning("prefix_cache_gib has no effect: the prefix cache is of stored passages, and there is no index")
    text_cache = open_text_cache(settings)
    loaded = None if reuse_from is None else reuse_from.documents
    model = load_model(settings) if reuse_from is None else reuse_from.model
    served = Served(model, DocumentEncoder(model, cache=text_cache, reuse_from=loaded))
    return _service(LiveModel(served), settings, text_cache)


def load_served(settings: Settings) -> Served:
    """Both sides of the settings' model, without a text cache. Raises as `open_text_service`."""
    model = load_model(settings)
    documents = DocumentEncoder(model)
    documents.load()
    return Served(model, documents)


def _service(live: LiveIndex | LiveModel, settings: Settings, text_cache: TextCache | None) -> Service:
    tokenizer = live.served.model.query_side.tokenizer
    for name in ("instruction", "system_instruction"):
        require_short(tokenizer, getattr(settings, name), settings.max_instruction_tokens, name)
    return Service(live, settings, text_cache)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT, finish those that were begun, and return."""
    with _signals_set_exit(server):
        server.run(sockets=[listener])


def make_server(app: FastAPI, limits: ConnectionLimits | None = None) -> Server:
    """A server of an application that alone listens on its sockets."""
    return Server(app, limits or ConnectionLimits())


def _run(
    settings: Settings,
    listener: socket.socket,
    load: Callable[[], _T],
    open_: Callable[[Settings, _T | None], Service | Router],
) -> None:
    """Serve in this process, or in several that share what `load` returns; on CUDA each has a GPU and its own."""
    if settings.workers == 1:
        _serve_service(open_(settings, None), settings, listener)
        return
    gpus = worker_gpus(settings.device, settings.workers)

    def serve_here(number: int, shared: _T | None) -> None:
        own = settings.model_copy(update={"device": gpus[number]}) if gpus else settings
        _serve_service(open_(own, shared), own, listener)

    run_workers(settings.workers, (lambda: None) if gpus else load, serve_here, lambda: _stop_listening(listener))


def _load_index(folder: Path, settings: Settings) -> PassageIndex:
    with open_index(folder, settings) as index:
        return index  # closed: each worker maps the files itself


def _serve_service(service: Service | Router, settings: Settings, listener: socket.socket) -> None:
    app = create_app(service)
    logger.info("serving %s on %s (API: /docs)", _what_is_served(service), address_of(listener))
    server = Server(app, ConnectionLimits.from_settings(settings), shares_socket=settings.workers > 1)
    if isinstance(service, Router):
        serve(server, listener)
        return
    computation = service.live.served.model.query_side.computation
    logger.info("computing in %s (dtype %s)", computation, settings.dtype)
    service.on_lost = server.stop
    serve(server, listener)
    if service.lost is not None:
        raise service.lost


def _what_is_served(service: Service | Router) -> str:
    if isinstance(service, Router):
        return "the shards of an index"
    served, shards = service.live.served, service.settings.shards
    if served.index is None:
        return f"texts with {service.model}"
    return f"{served.passages} passages" + (f" of shards {shards}" if shards else "")


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
