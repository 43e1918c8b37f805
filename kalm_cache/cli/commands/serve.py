"""`kalm-cache serve`: the query service over one index, or over a model alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import remote_copy
from kalm_cache.cli.output import exit_codes


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How `serve` serves."""

    panel: ClassVar = "Service"
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; 127.0.0.1 by default.")] = None
    port: Annotated[int | None, typer.Option("--port", help="Port to bind; 0 = any free one.")] = None
    shards: Annotated[
        str | None, typer.Option("--shards", help="Shards of the index to serve, as 0,3; a router asks them.")
    ] = None
    prefix_cache_gib: Annotated[
        float | None, typer.Option("--prefix-cache-gib", help="Memory for passages met before; 0 = none.")
    ] = None
    shared_prefix: Annotated[
        str | None,
        typer.Option("--shared-prefix", help="mean: tokens before the query cost nothing; margins differ a bit."),
    ] = None
    with_encoder: Annotated[
        bool | None, typer.Option("--with-encoder/--without-encoder", help="Score raw documents too.")
    ] = None
    text_cache: Annotated[
        str | None, typer.Option("--text-cache", help="Folder that keeps encoded texts; implies the encoder.")
    ] = None
    text_cache_gib: Annotated[
        float | None, typer.Option("--text-cache-gib", help="What the text cache may take on disk; 4 by default.")
    ] = None
    workers: Annotated[int | None, typer.Option("--workers", help="Processes; they share weights and index.")] = None
    api_keys_file: Annotated[
        Path | None, typer.Option("--api-keys-file", help="Bearer keys, one a line; or KALM_CACHE_API_KEYS.")
    ] = None
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None


def serve(
    service: ServiceOptions,
    model: opt.ModelOptions,
    index: Annotated[
        str | None, typer.Option("--index", help="Folder of the index, or its URL; without one, --text-cache.")
    ] = None,
    config: opt.ConfigFile = None,
) -> None:
    """Serve over HTTP until SIGTERM: /search, /rerank, /score, /metrics, /docs, and a page at /.

    Without --index, and with --text-cache, all but /search: a rerank server for texts, each encoded once.
    Every other limit is a setting: see kalm-cache config show.
    """
    from kalm_cache.generations.remote.copies import refresh_elsewhere
    from query_service.server import run_server

    with exit_codes():
        settings = opt.settings_from(config, service, model)
        remote = None if index is None else remote_copy(index, settings, settings.served_shards)
        if remote is None:
            run_server(None if index is None else Path(index), settings)
            return
        if settings.workers > 1:  # which are forked: nothing of the store may run before that in this process
            refresh_elsewhere(remote)
        else:
            remote.refresh()
        run_server(remote.reading, settings, remote.refresh)
