"""`kalm-cache watch`: an index that follows a file or a folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.corpus_input import STDIN, CorpusOptions, warn_of_rejects
from kalm_cache.cli.index_places import index_to_change, index_to_read
from kalm_cache.cli.output import exit_codes, print_report
from kalm_cache.errors import UsageError
from kalm_cache.object_store.location import is_remote

if TYPE_CHECKING:
    from indexer.change.reindex import ReindexReport
    from kalm_cache.settings import Settings

logger = logging.getLogger(__name__)


def watch(
    source: CorpusOptions,
    index: opt.IndexPlace,
    settle: Annotated[
        float, typer.Option("--settle", min=0.05, max=20.0, help="Seconds without a change that end a batch.")
    ] = 1.0,
    device: opt.Device = None,
    batch_tokens: opt.BatchTokens = None,
    json: opt.AsJson = False,
) -> None:
    """Follow a corpus: add, replace and delete in an index as its files change, until it is stopped.

    It begins with what has changed meanwhile. A batch of changes makes one segment, and small ones are folded. While a
    line is rejected, nothing is deleted: the passage may be in it.
    """
    with exit_codes(resumable=True):
        from indexer.change.watch import follow

        path = _path_of(source, index)
        update = _updating(source, index, opt.settings_from(None, device=device, batch_tokens=batch_tokens), json)
        logger.info("following %s; Ctrl-C ends it", path)
        follow(path, update, settle_seconds=settle)


def _path_of(source: CorpusOptions, index: str) -> Path:
    """What is followed. Raises `UsageError` where that cannot be."""
    path = Path(source.corpus)
    if source.corpus == STDIN or is_remote(source.corpus):
        raise UsageError(f"{source.corpus!r} cannot be followed: give a file or a folder of this machine")
    if not path.exists():
        raise UsageError(f"{path} does not exist; give a file or a folder")
    for flag, written in (("--index", None if is_remote(index) else Path(index)), ("--errors", source.errors)):
        if written is not None and path.is_dir() and written.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{flag} {written} is in the folder that is followed; name a place elsewhere")
    return path


def _updating(source: CorpusOptions, index: str, overrides: Settings, json: bool) -> Callable[[], None]:
    """Brings the index to the corpus, and prints what that changed. Models are loaded once."""
    from indexer.change.reindex_small import run_small_reindex
    from indexer.corpus.rejects import ErrorsFile
    from indexer.models import batch_tokens_of, load_encoders_of
    from kalm_cache.generations.generation import open_current

    with index_to_read(index, overrides) as folder:
        settings, encoders = load_encoders_of(open_current(folder).manifest, overrides)
    settings = settings.model_copy(update={"batch_tokens": batch_tokens_of(settings, encoders.passage_side)})

    def update() -> None:
        lines = source.lines(settings.passage_template, settings.metadata)
        with index_to_change(index, overrides) as folder, ErrorsFile(source.errors) as rejects:
            before = open_current(folder).name
            report = run_small_reindex(
                *(lines, folder, settings, encoders),
                spare_if_unreadable=True,
                on_reject=rejects.add,
                on_progress=lambda counts: None,
            )
        warn_of_rejects(rejects)
        if report.generation != before or report.kept:
            print_report(replace(report, index=index), _updated(index, report), json)
            sys.stdout.flush()

    return update


def _updated(index: str, report: ReindexReport) -> str:
    spared = f"; {report.kept:,} that are missing stay while lines are rejected" if report.kept else ""
    return (
        f"generation {report.generation} of {index} holds {report.passages:,} passages: {report.encoded:,} encoded, "
        f"{report.deleted:,} deleted, {report.rejected:,} rejected{spared}; {report.seconds:.1f} s"
    )
