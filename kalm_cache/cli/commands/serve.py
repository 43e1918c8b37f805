"""`kalm-cache serve`: the query service over one index, or over a model alone; here, or on a Ray cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import remote_copy
from kalm_cache.cli.output import exit_codes
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.settings import Settings


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


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """By whom the shards of an index are served."""

    panel: ClassVar = "Engine"
    engine: Annotated[str | None, typer.Option("--engine", help="ray: Ray Serve; without it, this process.")] = None
    address: Annotated[
        str | None, typer.Option("--address", help="Of a Ray cluster, or auto; without it, this machine alone.")
    ] = None
    replicas: Annotated[int | None, typer.Option("--replicas", min=1, help="Of each shard; 1 by default.")] = None
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", min=1, help="So many where queues are long.")
    ] = None
    queue_per_replica: Annotated[
        float | None, typer.Option("--queue-per-replica", help="A queue is long from here; 8 by default.")
    ] = None
    cpus_per_replica: Annotated[
        float | None, typer.Option("--cpus-per-replica", min=0, help="And its threads; 1 by default.")
    ] = None
    gpus_per_replica: Annotated[float | None, typer.Option("--gpus-per-replica", min=0, help="0 by default.")] = None
    routers: Annotated[int | None, typer.Option("--routers", min=1, help="Before the shards; 1 by default.")] = None

    @property
    def given(self) -> dict[str, object]:
        """The flags that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def serve(
    service: ServiceOptions,
    model: opt.ModelOptions,
    engine: EngineOptions,
    index: Annotated[
        str | None, typer.Option("--index", help="Folder of the index, or its URL; without one, --text-cache.")
    ] = None,
    config: opt.ConfigFile = None,
) -> None:
    """Serve over HTTP until SIGTERM: /search, /rerank, /score, /metrics, /docs, and a page at /.

    Without --index, and with --text-cache, all but /search: a rerank server for texts, each encoded once.
    With --engine ray, each shard of the index is a deployment of Ray Serve, and a router answers before them.
    Every other limit is a setting: see kalm-cache config show.
    """
    from kalm_cache.generations.remote.copies import refresh_elsewhere
    from query_service.server import run_server

    with exit_codes():
        settings = opt.settings_from(config, service, model)
        if engine.given:
            _serve_on_ray(index, settings, engine)
            return
        remote = None if index is None else remote_copy(index, settings, settings.served_shards)
        if remote is None:
            run_server(None if index is None else Path(index), settings)
            return
        if settings.workers > 1:  # which are forked: nothing of the store may run before that in this process
            refresh_elsewhere(remote)
        else:
            remote.refresh()
        run_server(remote.reading, settings, remote.refresh)


def _serve_on_ray(index: str | None, settings: Settings, engine: EngineOptions) -> None:
    if engine.engine is None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in engine.given)
        raise UsageError(f"{flags}: of --engine ray; add that")
    if engine.engine != "ray":
        raise UsageError(f"--engine {engine.engine}: must be ray; leave it out to serve in this process")
    if index is None:
        raise UsageError("--engine ray serves the shards of an index: give --index")
    if settings.shards or settings.workers > 1:
        raise UsageError("--engine ray serves all shards, by replicas: leave --shards and --workers out")
    from query_service.on_ray.application import served_on_ray
    from query_service.on_ray.run import run_on_ray

    given = {name: value for name, value in engine.given.items() if name not in ("engine", "address")}
    run_on_ray(served_on_ray({"index": index, **given}), settings, engine.address)
