"""CSV lines → passages; a quoted field may span lines. Knows nothing of files."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence

from indexer.corpus.columns import require_columns, row_passage
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import CorpusError
from kalm_cache.text.lines import MAX_LINE_BYTES, BadLineError, TextLine


def read_csv(lines: Iterator[TextLine]) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each row that is not blank, after the first, which names the columns.

    Raises:
        CorpusError: the first row cannot be read, or names no id or no text column.
    """
    # The limit, 131,072 characters by default, is the whole process's: only ever raised, since readers may take turns.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    names: list[str] | None = None
    for first in lines:
        if not first.data.strip():
            continue
        if names is None:
            names = _read_header(first, lines)
        else:
            yield _read_row(names, first, lines)


def _read_header(first: TextLine, following: Iterator[TextLine]) -> list[str]:
    try:
        names = [cell.strip() for cell in _read_cells(first, following)]
    except BadLineError as exc:
        raise CorpusError(f"{first.location}: cannot read the header: {exc.reason}") from exc
    require_columns(names, first.file_name)
    return names


def _read_row(names: Sequence[str], first: TextLine, following: Iterator[TextLine]) -> CorpusLine | RejectedLine:
    try:
        return CorpusLine(row_passage(names, _read_cells(first, following)), first.location)
    except BadLineError as exc:
        return RejectedLine.of(exc, first.location, first.raw)


def _read_cells(first: TextLine, following: Iterator[TextLine]) -> list[str]:
    problems: list[BadLineError] = []
    try:
        cells = next(csv.reader(_row_lines(first, following, problems)))
    except csv.Error as exc:
        raise BadLineError(f"bad CSV: {exc}; put a field with a line break in double quotes") from exc
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
