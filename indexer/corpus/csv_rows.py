"""CSV lines → passages; a quoted field may span lines. Knows nothing of files."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator

from indexer.corpus.columns import row_line
from indexer.corpus.fields import RecordFields
from indexer.corpus.layout import Layout
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import CorpusError
from kalm_cache.text.lines import MAX_LINE_BYTES, BadLineError, TextLine


def read_csv(lines: Iterator[TextLine], layout: Layout, record: RecordFields) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each row that is not blank, without the header.

    Raises:
        CorpusError: the header cannot be read.
    """
    header = layout.header
    for first in lines:
        if not first.data.strip():
            continue
        if header:
            header = False
            _skip_header(first, lines, layout)
        else:
            yield _read_row(layout, first, lines, record)


def _skip_header(first: TextLine, following: Iterator[TextLine], layout: Layout) -> None:
    try:
        _read_cells(first, following, layout.delimiter)
    except BadLineError as exc:
        raise CorpusError(f"{first.location}: cannot read the header: {exc.reason}") from exc


def _read_row(
    layout: Layout, first: TextLine, following: Iterator[TextLine], record: RecordFields
) -> CorpusLine | RejectedLine:
    try:
        cells = _read_cells(first, following, layout.delimiter)
        return row_line(layout.names, cells, record, first.location)
    except BadLineError as exc:
        return RejectedLine.of(exc, first.location, first.raw)


def _read_cells(first: TextLine, following: Iterator[TextLine], delimiter: str) -> list[str]:
    problems: list[BadLineError] = []
    try:
        # strict: without it, text behind a closing quote would be taken in and its quotes lost
        cells = next(csv.reader(_row_lines(first, following, problems), delimiter=delimiter, strict=True))
    except csv.Error as exc:
        raise BadLineError(
            f"bad CSV: {exc}; double the quotes inside a quoted field; put a field with a line break in double quotes"
        ) from exc
    if problems:
        raise problems[0]
    return cells


def _row_lines(first: TextLine, following: Iterator[TextLine], problems: list[BadLineError]) -> Iterator[str]:
    """The lines that csv.reader asks for until its row is complete.

    A line that is not UTF-8 goes on, with a note in `problems`, for the row's end to be found.
    """
    row_bytes, line = 0, first
    for line in itertools.chain([first], following):
        row_bytes += len(line.data)
        if row_bytes > MAX_LINE_BYTES:
            raise BadLineError(f"the row is longer than {MAX_LINE_BYTES >> 20} MiB; is a double quote left open in it?")
        try:
            yield line.text()
        except BadLineError as exc:
            if line.is_too_long:
                raise
            problems.append(exc)
            yield line.data.decode("utf-8", "surrogateescape")
    raise BadLineError(f"a double quote is never closed, up to the file's end at line {line.number}; close it")
