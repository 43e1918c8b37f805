"""`kalm-cache index`: a corpus -> the next generation, built whole."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, human_bytes, print_json, stdout_console
from kalm_cache.cli.progress import show_progress
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.build.index_job import Encoders
    from indexer.corpus.rejects import ErrorsFile
    from kalm_cache.settings import Settings

logger = logging.getLogger(__name__)


def index(
    corpus: opt.Corpus,
    index: opt.IndexFolder,
    config: opt.ConfigFile = None,
    model: opt.Model = None,
    device: opt.Device = None,
    dtype: opt.DType = None,
    codec: opt.Codec = None,
    chunk_size: opt.ChunkSize = None,
    max_length: opt.MaxLength = None,
    embedder: opt.Embedder = None,
    dense_index: opt.DenseIndex = None,
    batch_tokens: opt.BatchTokens = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Do not keep the passages' text.")] = False,
    errors: opt.ErrorsFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and project; store nothing.")] = False,
    json: opt.AsJson = False,
) -> None:
    """Encode a corpus once and publish it as the next generation of an index.

    Interrupted, it goes on where it stopped when run again. Exit code 3 when lines were rejected.
    """
    from kalm_cache.settings import load_settings

    with exit_codes(resumable=True):
        settings = load_settings(
            config,
            model=model,
            device=device,
            dtype=dtype,
            codec=codec,
            chunk_size=chunk_size,
            max_length=max_length,
            embedder=embedder,
            dense_index=dense_index,
            batch_tokens=batch_tokens,
            store_text=False if no_text else None,
        )
        check_errors_file(errors, corpus)
        run = _dry_run if dry_run else _index
        rejected = run(corpus, index, settings, errors, json)
    if rejected:
        raise typer.Exit(EXIT_PARTIAL)


def _index(corpus: str, index: Path, settings: Settings, errors: Path | None, json: bool) -> int:
    from indexer.build.index_job import load_encoders, run_index_job
    from indexer.corpus import read_corpus
    from indexer.corpus.rejects import ErrorsFile

    lines = read_corpus(corpus, stdin=sys.stdin.buffer)  # first: a wrong path should not cost a model's loading
    encoders = load_encoders(settings)
    total = None if corpus == "-" else sum(1 for _ in read_corpus(corpus))
    with ErrorsFile(errors) as rejects, show_progress(total) as on_progress:
        report = run_index_job(lines, index, settings, encoders, on_reject=rejects.add, on_progress=on_progress)
    warn(rejects, report.truncated, settings)
    if json:
        print_json(dataclasses.asdict(report))
    else:
        stdout_console().print(
            f"generation {report.generation} of {index}: {report.passages:,} passages, {report.tokens:,} tokens "
            f"({report.encoded:,} encoded, {report.resumed + report.copied:,} already stored, "
            f"{report.rejected:,} rejected, {report.truncated:,} cut), "
            f"{human_bytes(report.file_bytes)} on disk, {report.seconds:.1f} s",
            soft_wrap=True,
        )
    return report.rejected


def _dry_run(corpus: str, index: Path, settings: Settings, errors: Path | None, json: bool) -> int:
    from indexer.build.index_job import load_encoders, project
    from indexer.corpus import read_corpus
    from indexer.corpus.rejects import ErrorsFile

    lines = read_corpus(corpus, stdin=sys.stdin.buffer)
    encoders: Encoders = load_encoders(settings)
    with ErrorsFile(errors) as rejects:
        projection = project(lines, encoders, settings.batch_tokens, on_reject=rejects.add)
    warn(rejects, projection.truncated, settings)
    if json:
        print_json(dataclasses.asdict(projection))
    else:
        stdout_console().print(
            f"{projection.passages:,} passages, {projection.tokens:,} tokens, {projection.truncated:,} would be cut, "
            f"{projection.rejected:,} rejected; about {human_bytes(projection.projected_bytes)} of records and "
            f"{projection.projected_seconds:,.0f} s of encoding (from {projection.sampled} passages encoded)",
            soft_wrap=True,
        )
    return projection.rejected


def check_errors_file(errors: Path | None, corpus: str) -> None:
    """Raise `UsageError` when rejected lines would be written over the corpus."""
    if errors is not None and errors.exists() and corpus != "-" and Path(corpus).exists() and errors.samefile(corpus):
        raise UsageError(f"--errors {errors} is the corpus itself; name another file")


def warn(rejects: ErrorsFile, truncated: int, settings: Settings) -> None:
    """Say on stderr what was left out or cut: the first lines, and where the rest is."""
    for line in rejects.first:
        logger.warning("rejected %s: %s", line.location, line.reason)
    if rejects.count > len(rejects.first):
        where = f"all of them are in {rejects.path}" if rejects.path else "use --errors FILE to keep them all"
        logger.warning("… and %d more rejected lines; %s", rejects.count - len(rejects.first), where)
    if truncated:
        logger.warning("%d passages are longer than max_length=%d tokens and were cut", truncated, settings.max_length)
