"""`kalm-cache doctor`: whether this machine, these settings and this index will serve well, and what to do if not."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, print_json, stdout_console

if TYPE_CHECKING:
    from kalm_cache.doctor import Check

MEASURED_S = 10.0
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    index: Annotated[Path | None, typer.Option("--index", help="Folder of an index to check too.")] = None,
    config: opt.ConfigFile = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure", help="Time the model in each dtype, for ten seconds; unset: on a terminal."
        ),
    ] = None,
    json: opt.AsJson = False,
) -> None:
    """Check the machine, the settings, the model and an index; changes nothing. Exit code 1 when a check failed."""
    with exit_codes():
        from kalm_cache.doctor import diagnose

        seconds = 0.0
        if _is_watched(json) if measure is None else measure:
            seconds = MEASURED_S
            typer.echo(f"timing the model in each dtype for {seconds:g} s (--no-measure leaves it out)", err=True)
        checks = diagnose(index, config, seconds)
    failed = any(check.status == "fail" for check in checks)
    if json:
        print_json({"ok": not failed, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        stdout_console().print(_table(checks))
    if failed:
        raise typer.Exit(1)


def _is_watched(json: bool) -> bool:
    """Whether a person waits for the table: a script had better not wait for what it did not ask for."""
    return not json and sys.stdout.isatty()


def _table(checks: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    table.add_column("")
    table.add_column("found, and → what to do", overflow="fold")
    for check in checks:
        style, text = STYLES[check.status], Text(check.found)
        if check.advice:
            text.append(f"\n→ {check.advice}", style)
        table.add_row(check.name, Text(check.status, style), text)
    return table
