"""The typer application: which command is which function. A command's module is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from kalm_cache.cli.option_groups import with_flags
from kalm_cache.cli.output import exit_codes, start_logging
from kalm_cache.cli.texts import with_unicode_texts
from kalm_cache.process.system import raise_open_files_limit

COMMANDS = {  # name -> module in commands/, and its function; a module alone has a `group` of several `COMMANDS`
    "index": "index.index",
    "reindex": "change.reindex",
    "add": "change.add",
    "delete": "change.delete",
    "watch": "watch.watch",
    "search": "search.search",
    "rerank": "rerank.rerank",
    "serve": "serve.serve",
    "router": "router.router",
    "client": "client.client",
    "stats": "upkeep.stats",
    "verify": "upkeep.verify",
    "rollback": "upkeep.rollback",
    "fold": "upkeep.fold",
    "gc": "upkeep.gc",
    "calibrate": "calibrate.calibrate",
    "push": "transfer.push",
    "pull": "transfer.pull",
    "warm": "warm.warm",
    "doctor": "doctor.doctor",
    "demo": "demo.demo",
    "eval": "evaluate.evaluate",
    "finetune": "finetune.finetune",
    "mine": "finetune.mine",
    "decoder": "decoder",
    "partition": "partition",
    "cache": "cache",
    "config": "config",
}
RESUMABLE = {
    "index",
    "reindex",
    "add",
    "watch",
    "verify",
    "demo",
    "eval",
    "warm",
    "finetune",
    "push",
    "pull",
    "partition",
}
PLAIN: Any = {"add_completion": False, "pretty_exceptions_enable": False}


class _Commands(Mapping[str, Any]):
    """The commands as typer knows them, by name."""

    def __getitem__(self, name: str) -> Any:
        return _command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Commands()


@cache
def _command(name: str) -> Any:
    """The command of a name. Raises `KeyError` where there is none."""
    place, _, function = COMMANDS[name].partition(".")
    module, alone = import_module(f"kalm_cache.cli.commands.{place}"), typer.Typer(**PLAIN)
    alone.callback()(lambda: None)  # a group, also of one command
    if function:
        alone.command(name)(_called(getattr(module, function), name))
    else:
        for part in module.COMMANDS:
            module.group.command(part.__name__.rstrip("_"))(_called(part, name))
        alone.add_typer(module.group, name=name)
    return typer.main.get_command(alone).commands[name]  # type: ignore[attr-defined]  # of a group


def _called(function: Callable[..., None], name: str) -> Callable[..., None]:
    """What typer calls: whatever ends a command early, its arguments' faults and its output's included, is one line."""
    return exit_codes(resumable=name in RESUMABLE)(with_unicode_texts(with_flags(function)))


app = typer.Typer(
    name="kalm-cache",
    cls=_Group,
    help="Rerank with a KaLM reranker at the cost of its decoder alone, from passages encoded once.\n\n"
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 some inputs were rejected, 4 index and model do not fit, "
    "130 interrupted, 141 nobody reads standard output, 143 stopped by SIGTERM.",
    no_args_is_help=True,
    **PLAIN,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    start_logging()
    raise_open_files_limit()
    if version:
        from kalm_cache import __version__

        typer.echo(__version__)
        raise typer.Exit
