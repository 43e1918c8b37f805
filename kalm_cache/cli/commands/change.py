"""`kalm-cache reindex`, `add` and `delete`: a published index -> its next generation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.corpus_input import CorpusOptions, warn_of_rejects, with_unused
from kalm_cache.cli.engine import EngineOptions
from kalm_cache.cli.index_places import index_to_change
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, human_bytes, print_report
from kalm_cache.cli.progress import show_progress
from kalm_cache.cli.texts import lines_in
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.change.add_delete import AddReport, DeleteReport
    from indexer.change.reindex import ReindexReport
    from indexer.distributed.jobs import PartitionBuilder
    from kalm_cache.settings import Settings


def reindex(
    source: CorpusOptions,
    index: opt.IndexPlace,
    model: opt.ModelOptions,
    encoding: opt.EncodingOptions,
    engine: EngineOptions,
    config: opt.ConfigFile = None,
    store_text: Annotated[bool | None, typer.Option("--text/--no-text", help="Keep the passages' text.")] = None,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing/--keep-missing", help="What becomes of passages that CORPUS has not.")
    ] = True,
    shards: opt.Shards = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Add and delete what differs; write nothing else anew.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Bring an index to a corpus and to new settings: encode what changed, copy or recode the rest.

    Settings that are not given are those of the index; with --incremental, none can be changed. Interrupted, it goes
    on where it stopped when run again. Exit code 3 when lines were rejected.
    """
    with exit_codes(resumable=True):
        overrides = opt.settings_from(config, model, encoding, store_text=store_text)
        if incremental and shards is not None:
            raise UsageError("--shards writes the base anew: leave --incremental out")
        if incremental and engine.engine is not None:
            raise UsageError("--engine writes the base anew: leave --incremental out")
        reindexing = _Reindexing(incremental, not delete_missing, shards, dry_run)
        with engine.builder() as builder:
            if builder is not None and not dry_run:
                report = _reindex_in_partitions(source, index, overrides, reindexing, builder)
            else:
                with index_to_change(index, overrides) as folder:
                    report = _reindex(source, folder, overrides, reindexing)
        report = replace(report, index=index)
    print_report(report, with_unused(_reindexed(report), report.unused_fields), json)
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)


class _Reindexing(NamedTuple):
    """What a reindex was asked to do."""

    incremental: bool
    keep_missing: bool
    shards: int | None
    dry_run: bool


def _reindex(source: CorpusOptions, index: Path, overrides: Settings, asked: _Reindexing) -> ReindexReport:
    from indexer.change.reindex import plan_reindex, run_reindex
    from indexer.change.reindex_small import run_small_reindex
    from indexer.corpus.rejects import ErrorsFile
    from indexer.models import built_settings_overridden, load_encoders
    from kalm_cache.generations.generation import open_current

    settings = built_settings_overridden(open_current(index).manifest, overrides)
    lines = source.lines(settings.passage_template, settings.metadata)
    encoders = load_encoders(settings)
    run = run_small_reindex if asked.incremental else partial(run_reindex, shards=asked.shards)
    with ErrorsFile(source.errors) as rejects:
        if asked.dry_run:
            report = plan_reindex(
                *(lines, index, encoders),
                metadata=settings.metadata,
                keep_missing=asked.keep_missing,
                on_reject=rejects.add,
            )
        else:
            with show_progress(source.count()) as on_progress:
                report = run(
                    *(lines, index, settings, encoders),
                    keep_missing=asked.keep_missing,
                    on_reject=rejects.add,
                    on_progress=on_progress,
                )
    warn_of_rejects(rejects)
    return report


def _reindex_in_partitions(
    source: CorpusOptions, index: str, overrides: Settings, asked: _Reindexing, builder: PartitionBuilder
) -> ReindexReport:
    from indexer.corpus.rejects import ErrorsFile
    from indexer.distributed.jobs import live_manifest_at, place_of, reindex_in_partitions
    from indexer.models import built_settings_overridden, load_encoders

    place = place_of(index, overrides)
    settings = built_settings_overridden(live_manifest_at(place), overrides)
    lines = source.lines(settings.passage_template, settings.metadata)
    with ErrorsFile(source.errors) as rejects, show_progress(source.count()) as on_progress:
        report = reindex_in_partitions(
            *(lines, place, settings, load_encoders(settings), builder),
            keep_missing=asked.keep_missing,
            on_reject=rejects.add,
            on_progress=on_progress,
            shards=asked.shards,
        )
    warn_of_rejects(rejects)
    return report


def add(
    source: CorpusOptions,
    index: opt.IndexPlace,
    device: opt.Device = None,
    batch_tokens: opt.BatchTokens = None,
    json: opt.AsJson = False,
) -> None:
    """Add passages to an index, or replace those whose texts changed, without touching the others.

    They are encoded as the index was, and are there for whoever opens it next. Interrupted, it goes on where it
    stopped when run again. Exit code 3 when lines were rejected.
    """
    with exit_codes(resumable=True):
        overrides = opt.settings_from(None, device=device, batch_tokens=batch_tokens)
        with index_to_change(index, overrides) as folder:
            report = _add(source, folder, overrides)
        report = replace(report, index=index)
    print_report(report, with_unused(_added(report), report.unused_fields), json)
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)


def _add(source: CorpusOptions, index: Path, overrides: Settings) -> AddReport:
    from indexer.change.add_delete import add_passages
    from indexer.corpus.rejects import ErrorsFile
    from indexer.models import load_encoders_of
    from kalm_cache.generations.generation import open_current

    manifest = open_current(index).manifest
    lines = source.lines(manifest.passage_template, manifest.metadata)
    settings, encoders = load_encoders_of(manifest, overrides)
    with ErrorsFile(source.errors) as rejects, show_progress(source.count()) as on_progress:
        report = add_passages(lines, index, settings, encoders, on_reject=rejects.add, on_progress=on_progress)
    warn_of_rejects(rejects)
    return report


def delete(
    index: opt.IndexPlace,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of the passages.")] = None,
    ids_file: opt.IdsFile = None,
    json: opt.AsJson = False,
) -> None:
    """Delete passages: no answer has them from now on; `kalm-cache gc` then removes their bytes.

    Exit code 3 when the index does not have some of the ids.
    """
    with exit_codes():
        from indexer.change.add_delete import delete_passages

        doc_ids = [*(ids or []), *lines_in("--ids-file", ids_file)]
        if not doc_ids:
            raise UsageError("give ids, or --ids-file")
        with index_to_change(index) as folder:
            report = replace(delete_passages(doc_ids, folder), index=index)
    print_report(report, _deleted(report), json)
    if report.unknown:
        raise typer.Exit(EXIT_PARTIAL)


def _reindexed(report: ReindexReport) -> str:
    would = "would hold" if report.dry_run else "holds"
    name = f"the generation after {report.generation}" if report.dry_run else f"generation {report.generation}"
    lines = [
        f"{name} of {report.index} {would} {report.passages:,} passages: {report.reused:,} reused, "
        f"{report.recoded:,} recoded, {report.encoded:,} encoded; {report.deleted:,} deleted, {report.kept:,} that are "
        f"not in the corpus kept, {report.rejected:,} rejected"
    ]
    if report.why_encoded:
        lines.append(f"nothing that is stored can be used: {report.why_encoded}")
    if not report.dry_run:
        faster = "" if report.speedup is None else f", {report.speedup:,.1f} times as fast as a full build"
        lines.append(f"{human_bytes(report.bytes)} on disk, {report.seconds:.1f} s{faster}")
    elif report.full_build_seconds is not None:
        lines.append(f"a full build would take about {report.full_build_seconds:,.0f} s")
    return "\n".join(lines)


def _added(report: AddReport) -> str:
    other_metadata = f"{report.updated:,} with other metadata, " if report.updated else ""
    return (
        f"generation {report.generation} of {report.index} holds {report.passages:,} passages: {report.added:,} added, "
        f"{report.replaced:,} replaced, {other_metadata}{report.unchanged:,} unchanged, {report.rejected:,} rejected; "
        f"{human_bytes(report.new_bytes)} more on disk, {report.seconds:.1f} s"
    )


def _deleted(report: DeleteReport) -> str:
    unknown = (
        f"; {len(report.unknown):,} ids it did not have: {', '.join(report.unknown[:5])}" if report.unknown else ""
    )
    return (
        f"generation {report.generation} of {report.index} holds {report.passages:,} passages: "
        f"{report.deleted:,} deleted{unknown}. Their bytes go with: kalm-cache gc --index {report.index}"
    )
