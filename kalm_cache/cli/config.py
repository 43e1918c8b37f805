"""`kalm-cache config show`: the settings in force, as a TOML file that would give them."""

from __future__ import annotations

import json as json_module

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json

config_app = typer.Typer(help="The settings in force.", no_args_is_help=True)


@config_app.command("show")
def show(config: opt.ConfigFile = None, json: opt.AsJson = False) -> None:
    """Print every setting, after `--config`, KALM_CACHE_* and defaults."""
    from kalm_cache.settings import load_settings

    with exit_codes():
        settings = load_settings(config)
    if json:
        print_json(settings.model_dump())
        return
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        typer.echo(f"# {field.description}")
        # a JSON string, number or bool is a TOML one too
        typer.echo(f"# {name} =" if value is None else f"{name} = {json_module.dumps(value, ensure_ascii=False)}")
