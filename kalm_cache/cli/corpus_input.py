"""The corpus of a command: where its lines come from, and what becomes of those that are rejected."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.errors import UsageError
from kalm_cache.object_store.location import is_remote
from kalm_cache.passage import PassageTemplate

if TYPE_CHECKING:
    from indexer.corpus import CorpusLine, RejectedLine, TableFormat
    from indexer.corpus.rejects import ErrorsFile

STDIN = "-"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """A corpus, and the file that takes its rejected lines."""

    corpus: Annotated[
        str,
        typer.Argument(help="JSONL, TSV, CSV or Parquet file (also .gz, .zst), a folder, a URL of either, or -."),
    ]
    errors: Annotated[Path | None, typer.Option("--errors", help="Write rejected lines to this file.")] = None
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns of CSV and TSV files, as id,title,text; - = not read.")
    ] = None
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Whether their first line names the columns.")
    ] = None
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Between columns: tab, comma, semicolon, pipe.")
    ] = None
    quotes: Annotated[
        bool | None, typer.Option("--quotes/--no-quotes", help="Whether double quotes enclose fields.")
    ] = None

    @property
    def tables(self) -> TableFormat:
        """How CSV and TSV files are laid out, as far as the flags say. Raises `UsageError`."""
        from indexer.corpus import TableFormat

        columns = tuple(name.strip() for name in self.columns.split(",")) if self.columns else None
        return TableFormat(columns, self.header, self.delimiter, self.quotes)

    def lines(self, passage_template: str, metadata: str) -> Iterable[CorpusLine | RejectedLine]:
        """The corpus, opened. Call it before a model is loaded: a wrong path then costs no time.

        Args:
            passage_template: how the fields of its records make passages.
            metadata: which other fields are kept.

        Raises:
            CorpusError: it cannot be read.
            UsageError: rejected lines would be written over it.
        """
        from indexer.corpus import read_corpus

        if self.errors is not None and self.errors.exists() and self._is_corpus(self.errors):
            raise UsageError(f"--errors {self.errors} is the corpus itself; name another file")
        if self.corpus == STDIN and sys.stdin.isatty():
            logger.info("reading the corpus from the terminal; Ctrl-D ends it")
        template = PassageTemplate(passage_template)
        return read_corpus(
            self.corpus, stdin=sys.stdin.buffer, tables=self.tables, template=template, metadata=metadata
        )

    def count(self) -> int | None:
        """How many lines there are, for a progress bar: reads the corpus once.

        `None` where that is not for free: stdin is read once, and an object store's bytes may have a price.
        """
        from indexer.corpus import read_corpus

        if not self._is_path:
            return None
        return sum(1 for _ in read_corpus(self.corpus, tables=self.tables, say=False))

    @property
    def _is_path(self) -> bool:
        return self.corpus != STDIN and not is_remote(self.corpus)

    def _is_corpus(self, path: Path) -> bool:
        return self._is_path and Path(self.corpus).exists() and path.samefile(self.corpus)


def warn_of_rejects(rejects: ErrorsFile) -> None:
    """Log the first rejected lines, and where the rest is."""
    for line in rejects.first:
        logger.warning("rejected %s: %s", line.location, line.reason)
    if rejects.count > len(rejects.first):
        where = f"all of them are in {rejects.path}" if rejects.path else "use --errors FILE to keep them all"
        logger.warning("… and %d more rejected lines; %s", rejects.count - len(rejects.first), where)


def warn_of_cut(passages: int, max_length: int) -> None:
    """Log how many passages were longer than `max_length` tokens."""
    if passages:
        logger.warning("%d passages are longer than max_length=%d tokens and were cut", passages, max_length)


def with_unused(in_words: str, unused_fields: Mapping[str, int]) -> str:
    """A summary, with a line that names the fields that are no part of the passages, where there are any."""
    if not unused_fields:
        return in_words
    names = (
        f"{name if name and name.isprintable() else ascii(name)} ({lines:,})" for name, lines in unused_fields.items()
    )
    return (
        f"{in_words}\nno part of the passages (passage_template names what is, and metadata what is kept beside it): "
        f"{', '.join(names)}"
    )
