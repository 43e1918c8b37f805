"""`kalm-cache router`: the shards of an index behind one address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes
from kalm_cache.errors import UsageError


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How `router` serves."""

    panel: ClassVar = "Service"
    host: Annotated[str | None, typer.Option("--host", help="Address to bind; 127.0.0.1 by default.")] = None
    port: Annotated[int | None, typer.Option("--port", help="Port to bind; 0 = any free one.")] = None
    partial_answers: Annotated[
        bool | None,
        typer.Option("--partial-answers/--whole-answers", help="Nobody serves a shard: do without, or answer 503."),
    ] = None
    hedge_ms: Annotated[
        float | None, typer.Option("--hedge-ms", help="Ask another replica after so long; measured by default.")
    ] = None
    workers: Annotated[int | None, typer.Option("--workers", help="Processes.")] = None
    api_keys_file: Annotated[
        Path | None, typer.Option("--api-keys-file", help="Bearer keys, one a line; or KALM_CACHE_API_KEYS.")
    ] = None
    log_format: Annotated[str | None, typer.Option("--log-format", help="text or json.")] = None


def router(
    service: RouterOptions,
    shards_file: Annotated[
        Path | None,
        typer.Option("--shards-file", help="URLs of services of shards, one a line; read again and again."),
    ] = None,
    discover: Annotated[
        str | None, typer.Option("--discover", help="http://NAME:PORT: a service at every address of the name in DNS.")
    ] = None,
    config: opt.ConfigFile = None,
) -> None:
    """Answer as one service over a whole index, by asking those that serve its shards (serve --shards).

    It holds no index and no model. A service says which shards it has; several with the same ones are replicas.
    """
    from query_service.router.addresses import addresses_in_file, addresses_of_name
    from query_service.server import run_router

    with exit_codes():
        if (shards_file is None) == (discover is None):
            raise UsageError("give one of --shards-file FILE and --discover http://NAME:PORT")
        settings = opt.settings_from(config, service)
        addresses = addresses_of_name(str(discover)) if shards_file is None else addresses_in_file(shards_file)
        run_router(addresses, settings)
