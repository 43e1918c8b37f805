"""`kalm-cache partition plan`, `build`, `commit` and `drop`: an index built by many processes, whatever starts them.

A room of its own, and no part of `kalm-cache index`: a corpus may be called plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.commands.index import indexed
from kalm_cache.cli.corpus_input import CorpusOptions, warn_of_cut, warn_of_rejects, with_unused
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, human_bytes, print_report
from kalm_cache.cli.progress import show_progress

if TYPE_CHECKING:
    from indexer.distributed.plan_job import PlanReport
    from kalm_cache.settings import Settings

group = typer.Typer(help="Build an index in partitions, by any number of processes.", no_args_is_help=True)


def plan(
    source: CorpusOptions,
    index: opt.IndexPlace,
    model: opt.ModelOptions,
    encoding: opt.EncodingOptions,
    shards: Annotated[int, typer.Option("--shards", min=1, help="Partitions, and segments of the index.")],
    config: opt.ConfigFile = None,
    no_text: opt.NoText = False,
    json: opt.AsJson = False,
) -> None:
    """Read a corpus once, and write the texts of each partition; nothing is encoded.

    Exit code 3 when lines were rejected: the plan is made of the others.
    """
    with exit_codes(resumable=True):
        settings = opt.settings_from(config, model, encoding, store_text=False if no_text else None)
        report = _plan(source, index, settings, shards)
    in_words = (
        f"{report.passages:,} passages in {len(report.partitions):,} partitions of {min(report.partitions):,} to "
        f"{max(report.partitions):,}, {report.rejected:,} rejected, {human_bytes(report.text_bytes)} of texts, "
        f"{report.seconds:.1f} s"
    )
    print_report(report, with_unused(in_words, report.unused_fields), json)
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)


def _plan(source: CorpusOptions, index: str, settings: Settings, shards: int) -> PlanReport:
    from indexer.corpus.rejects import ErrorsFile
    from indexer.distributed.jobs import place_of, plan_at
    from indexer.models import load_encoders
    from kalm_cache.process.stopping import stop_if_asked

    lines = source.lines(settings.passage_template, settings.metadata)
    encoders = load_encoders(settings)
    with ErrorsFile(source.errors) as rejects:
        report = plan_at(
            *(place_of(index, settings), lines, settings, encoders),
            shards=shards,
            on_reject=rejects.add,
            on_progress=lambda counts: stop_if_asked(),
        )
    warn_of_rejects(rejects)
    return replace(report, index=index)


def build(
    index: opt.IndexPlace,
    partition: Annotated[int, typer.Option("--partition", min=0, help="Its number, from 0.")],
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Folder on a local disk to build in, if the index is on none.")
    ] = None,
    device: opt.Device = None,
    json: opt.AsJson = False,
) -> None:
    """Build one partition of the plan. Any number of these may run, here and on other machines, also of one partition.

    Interrupted, it goes on where it stopped when run again. A partition that is built already is not built again.
    """
    with exit_codes(resumable=True):
        from indexer.distributed.build_job import build_partition
        from indexer.distributed.jobs import place_of

        with show_progress(None) as on_progress:
            settings = opt.settings_from(None, device=device)
            receipt = build_partition(
                place_of(index, settings), partition, settings, scratch=scratch, on_progress=on_progress
            )
    in_words = (
        f"partition {receipt.partition}: {receipt.counts.passages:,} passages, {receipt.counts.tokens:,} tokens "
        f"({receipt.encoded:,} encoded, {receipt.resumed + receipt.copied:,} already stored), "
        f"{human_bytes(sum(file.bytes for file in receipt.files.values()))} in {receipt.folder}"
    )
    print_report(receipt, in_words, json)


def commit(
    index: opt.IndexPlace,
    receipt: Annotated[
        list[Path] | None, typer.Option("--receipt", help="File of a receipt; repeat it. None: those beside attempts.")
    ] = None,
    json: opt.AsJson = False,
) -> None:
    """Publish the planned generation, once every partition is built. Publishes all of it, or nothing."""
    with exit_codes(resumable=True):
        from indexer.distributed.jobs import commit_at, live_manifest_at, place_of

        place = place_of(index)
        report = replace(commit_at(place, receipt or []), index=index)
        warn_of_cut(report.truncated, live_manifest_at(place).fingerprint.max_length)
    print_report(report, indexed(report), json)


def drop(index: opt.IndexPlace, json: opt.AsJson = False) -> None:
    """Give up a plan, with all that was built of it. Whoever still builds a partition ends with an error."""
    with exit_codes():
        from indexer.distributed.jobs import drop_at, place_of

        report = replace(drop_at(place_of(index)), index=index)
    in_words = (
        f"the plan {report.plan[:12]}… is given up; {report.built:,} of {report.partitions:,} partitions were built"
    )
    print_report(report, in_words, json)


COMMANDS: tuple[Callable[..., None], ...] = (plan, build, commit, drop)
