"""`kalm-cache decoder set` and `show`: which decoder answers over an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.index_places import index_to_change, index_to_read
from kalm_cache.cli.output import exit_codes, print_report

if TYPE_CHECKING:
    from indexer.change.set_decoder import DecoderReport

group = typer.Typer(help="Answer with another decoder over the same states.", no_args_is_help=True)


def set_(
    checkpoint: Annotated[str, typer.Argument(help="Alias, folder or hub id; its encoder must be the index's.")],
    index: opt.IndexPlace,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the model lies that built an index of an earlier version.")
    ] = None,
    json: opt.AsJson = False,
) -> None:
    """Answer with this checkpoint's decoder from now on: a generation with the same files. Nothing is encoded.

    A service takes it over while it answers; `kalm-cache rollback` goes back.
    """
    with exit_codes():
        from indexer.change.set_decoder import set_decoder

        with index_to_change(index) as folder:
            report = replace(set_decoder(folder, checkpoint, model), index=index)
    print_report(report, _set(report), json)


def show(index: opt.IndexPlace, json: opt.AsJson = False) -> None:
    """Which decoder answers over an index, and which encoder made its states."""
    with exit_codes():
        from indexer.change.set_decoder import show_decoder

        with index_to_read(index) as folder:
            report = replace(show_decoder(folder), index=index)
    print_report(report, _shown(report), json)


def _set(report: DecoderReport) -> str:
    answers = f"generation {report.generation} of {report.index} answers with {report.decoder}"
    if report.before_digest == report.decoder_digest:
        return f"{answers} already: nothing was published"
    return (
        f"{answers} ({_short(report.decoder_digest)}; was {report.before}, {_short(report.before_digest)}) over the "
        f"same {report.passages:,} passages"
    )


def _shown(report: DecoderReport) -> str:
    encoder, decoder = (_short(digest) for digest in (report.encoder_digest, report.decoder_digest))
    return (
        f"generation {report.generation} of {report.index}: {report.passages:,} passages\n"
        f"encoder  {encoder:<13}  {report.model}\ndecoder  {decoder:<13}  {report.decoder}"
    )


def _short(digest: str | None) -> str:
    return "not known" if digest is None else f"{digest[:12]}…"


COMMANDS: tuple[Callable[..., None], ...] = (set_, show)
