"""`kalm-cache index`: a corpus -> the next generation, built whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.corpus_input import CorpusOptions, warn_of_cut, warn_of_rejects, with_unused
from kalm_cache.cli.engine import EngineOptions
from kalm_cache.cli.index_places import index_to_change
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, human_bytes, print_report
from kalm_cache.cli.progress import show_progress

if TYPE_CHECKING:
    from indexer.build.index_job import IndexReport
    from kalm_cache.settings import Settings


def index(
    source: CorpusOptions,
    index: opt.IndexPlace,
    model: opt.ModelOptions,
    encoding: opt.EncodingOptions,
    engine: EngineOptions,
    config: opt.ConfigFile = None,
    no_text: opt.NoText = False,
    shards: opt.Shards = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and project; store nothing.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Encode a corpus once and publish it as the next generation of an index.

    Interrupted, it goes on where it stopped when run again. Exit code 3 when lines were rejected.
    """
    with exit_codes(resumable=True):
        settings = opt.settings_from(config, model, encoding, store_text=False if no_text else None)
        if dry_run:
            rejected = _project(source, settings, json)
        else:
            report = _index(source, index, settings, shards, engine)
            print_report(report, indexed(report), json)
            rejected = report.rejected
    if rejected:
        raise typer.Exit(EXIT_PARTIAL)


def _index(
    source: CorpusOptions, index: str, settings: Settings, shards: int | None, engine: EngineOptions
) -> IndexReport:
    from indexer.build.index_job import load_encoders, run_index_job
    from indexer.corpus.rejects import ErrorsFile
    from indexer.distributed.jobs import index_in_partitions, place_of
    from indexer.models import on_all_gpus

    lines = source.lines(settings.passage_template, settings.metadata)
    with (
        engine.builder() as builder,
        ErrorsFile(source.errors) as rejects,
        show_progress(source.count()) as on_progress,
    ):
        encoders = load_encoders(settings)
        if builder is not None:
            report = index_in_partitions(
                *(lines, place_of(index, settings), settings, encoders, builder),
                on_reject=rejects.add,
                on_progress=on_progress,
                shards=shards,
            )
        else:
            with index_to_change(index, settings, create=True) as folder:
                report = run_index_job(
                    *(lines, folder, settings, on_all_gpus(encoders, settings)),
                    on_reject=rejects.add,
                    on_progress=on_progress,
                    shards=shards,
                )
    warn_of_rejects(rejects)
    warn_of_cut(report.truncated, settings.max_length)
    return replace(report, index=index)


def indexed(report: IndexReport) -> str:
    """What was published, in words."""
    in_words = (
        f"generation {report.generation} of {report.index}: {report.passages:,} passages, {report.tokens:,} tokens "
        f"({report.encoded:,} encoded, {report.resumed + report.copied:,} already stored, "
        f"{report.rejected:,} rejected, {report.truncated:,} cut), "
        f"{human_bytes(report.file_bytes)} on disk, {report.seconds:.1f} s"
    )
    return with_unused(in_words, report.unused_fields)


def _project(source: CorpusOptions, settings: Settings, json: bool) -> int:
    from indexer.build.index_job import estimate_build, load_encoders
    from indexer.corpus.rejects import ErrorsFile
    from indexer.models import batch_tokens_of

    lines = source.lines(settings.passage_template, settings.metadata)
    encoders = load_encoders(settings)
    with ErrorsFile(source.errors) as rejects:
        tokens = batch_tokens_of(settings, encoders.passage_side)
        projection = estimate_build(lines, encoders, tokens, metadata=settings.metadata, on_reject=rejects.add)
    warn_of_rejects(rejects)
    warn_of_cut(projection.truncated, settings.max_length)
    in_words = (
        f"{projection.passages:,} passages, {projection.tokens:,} tokens, {projection.truncated:,} would be cut, "
        f"{projection.rejected:,} rejected; about {human_bytes(projection.projected_bytes)} of records and "
        f"{projection.projected_seconds:,.0f} s of encoding (from {projection.sampled} passages encoded)"
    )
    print_report(projection, with_unused(in_words, projection.unused_fields), json)
    return projection.rejected
