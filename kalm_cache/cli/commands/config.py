"""`kalm-cache config show`: the settings in force, as a TOML file that would give them."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable
from typing import Annotated

import typer
from pydantic import SecretStr

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json

group = typer.Typer(help="The settings in force.", no_args_is_help=True)


def show(
    config: opt.ConfigFile = None,
    sources: Annotated[bool, typer.Option("--sources", help="Also where each value came from.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Print every setting, after `--config`, KALM_CACHE_* and defaults."""
    from kalm_cache.settings import load_settings, source_of

    with exit_codes():
        settings = load_settings(config)
    if json:
        print_json(settings.model_dump(mode="json"))  # secrets as stars
        return
    for name, value in settings.model_dump(mode="json").items():
        source = f" ({source_of(settings, name, config)})" if sources else ""
        typer.echo(f"# {type(settings).model_fields[name].description}{source}")
        as_comment = value is None or isinstance(getattr(settings, name), SecretStr)  # TOML has no null
        # a JSON string, number or bool is a TOML one too
        text = "" if value is None else json_module.dumps(value, ensure_ascii=False)
        typer.echo(f"# {name} = {text}".rstrip() if as_comment else f"{name} = {text}")


COMMANDS: tuple[Callable[..., None], ...] = (show,)
