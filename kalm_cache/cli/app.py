"""The typer application: which command is which function."""

from __future__ import annotations

from collections.abc import Callable

import typer

from kalm_cache.cli.commands import cache, decoder, partition
from kalm_cache.cli.commands.change import add, delete, reindex
from kalm_cache.cli.commands.client import client
from kalm_cache.cli.commands.config import config_app, show
from kalm_cache.cli.commands.demo import demo
from kalm_cache.cli.commands.doctor import doctor
from kalm_cache.cli.commands.evaluate import evaluate
from kalm_cache.cli.commands.index import index
from kalm_cache.cli.commands.rerank import rerank
from kalm_cache.cli.commands.search import search
from kalm_cache.cli.commands.serve import serve
from kalm_cache.cli.commands.transfer import pull, push
from kalm_cache.cli.commands.upkeep import fold, gc, rollback, stats, verify
from kalm_cache.cli.commands.warm import warm
from kalm_cache.cli.option_groups import with_flags
from kalm_cache.cli.output import exit_codes, start_logging
from kalm_cache.cli.texts import with_unicode_texts
from kalm_cache.system import raise_open_files_limit

app = typer.Typer(
    name="kalm-cache",
    help="Rerank with a KaLM reranker at the cost of its decoder alone, from passages encoded once.\n\n"
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 some inputs were rejected, 4 index and model do not fit, "
    "130 interrupted, 141 nobody reads standard output, 143 stopped by SIGTERM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    start_logging()
    raise_open_files_limit()
    if version:
        from kalm_cache import __version__

        typer.echo(__version__)
        raise typer.Exit


RESUMABLE = (index, reindex, add, verify, demo, evaluate, warm, push, pull, *partition.COMMANDS)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """What typer calls: whatever ends a command early, its arguments' faults and its output's included, is one line."""
    return exit_codes(resumable=function in RESUMABLE)(with_unicode_texts(with_flags(function)))


for _function in (
    index,
    reindex,
    add,
    delete,
    search,
    rerank,
    serve,
    client,
    stats,
    verify,
    rollback,
    fold,
    gc,
    push,
    pull,
    warm,
    doctor,
    demo,
):
    app.command()(_command(_function))
app.command("eval")(_command(evaluate))
config_app.command("show")(_command(show))
for _part in cache.COMMANDS:
    cache.cache_app.command()(_command(_part))
for _part in partition.COMMANDS:
    partition.partition_app.command()(_command(_part))
for _name, _part in decoder.COMMANDS:
    decoder.decoder_app.command(_name)(_command(_part))
app.add_typer(decoder.decoder_app, name="decoder")
app.add_typer(partition.partition_app, name="partition")
app.add_typer(cache.cache_app, name="cache")
app.add_typer(config_app, name="config")
