"""`kalm-cache warm`: a corpus → the text cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.corpus_input import CorpusOptions, warn_of_cut, warn_of_rejects, with_unused
from kalm_cache.cli.output import EXIT_PARTIAL, exit_codes, print_report
from kalm_cache.cli.progress import show_progress
from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from indexer.warm import WarmReport
    from kalm_cache.settings import Settings


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Which text cache, and how large it may be."""

    panel: ClassVar = "Text cache"
    text_cache: Annotated[str | None, typer.Option("--text-cache", help="Folder of the text cache.")] = None
    text_cache_gib: Annotated[float | None, typer.Option("--text-cache-gib", help="GiB that its file may take.")] = None


def warm(
    source: CorpusOptions,
    cache: CacheOptions,
    model: opt.ModelOptions,
    encoding: opt.StatesOptions,
    config: opt.ConfigFile = None,
    json: opt.AsJson = False,
) -> None:
    """Encode a corpus into a text cache: its passages are hits then, whoever sends them as texts.

    Interrupted, it goes on where it stopped when run again. Exit code 3 when lines were rejected.
    """
    with exit_codes(resumable=True):
        report = _warm(source, opt.settings_from(config, cache, model, encoding))
    in_words = (
        f"{report.text_cache}: {report.passages:,} passages ({report.encoded:,} encoded, {report.cached:,} cached "
        f"already, {report.rejected:,} rejected, {report.truncated:,} cut), {report.seconds:.1f} s"
    )
    print_report(report, with_unused(in_words, report.unused_fields), json)
    if report.rejected:
        raise typer.Exit(EXIT_PARTIAL)


def _warm(source: CorpusOptions, settings: Settings) -> WarmReport:
    from indexer.corpus.rejects import ErrorsFile
    from indexer.models import batch_tokens_of
    from indexer.warm import open_states, warm_cache
    from kalm_cache.index.from_settings import open_text_cache

    lines, cache = source.lines(settings.passage_template, metadata=""), open_text_cache(settings)
    if cache is None:
        raise UsageError("name the text cache: --text-cache DIR")
    with cache, ErrorsFile(source.errors) as rejects, show_progress(source.count()) as on_progress:
        states, side = open_states(cache, settings)
        report = warm_cache(
            lines,
            states,
            side,
            batch_tokens=batch_tokens_of(settings, side),
            on_reject=rejects.add,
            on_progress=on_progress,
        )
    warn_of_rejects(rejects)
    warn_of_cut(report.truncated, settings.max_length)
    return report
