"""Lines whose columns a delimiter ends → passages. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Iterator

from indexer.corpus.columns import row_line
from indexer.corpus.fields import RecordFields
from indexer.corpus.layout import Layout
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.text.lines import BadLineError, TextLine


def read_tsv(lines: Iterator[TextLine], layout: Layout, record: RecordFields) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each line that is not blank, without the header. Quotes mean nothing: a line is a row."""
    filled = (line for line in lines if line.data.strip(b" \r\n"))
    if layout.header:
        next(filled, None)
    for line in filled:
        yield _read_row(layout, line, record)


def _read_row(layout: Layout, line: TextLine, record: RecordFields) -> CorpusLine | RejectedLine:
    try:
        cells = line.text().removesuffix("\n").removesuffix("\r").split(layout.delimiter)
        return row_line(layout.names, cells, record, line.location)
    except BadLineError as exc:
        return RejectedLine.of(exc, line.location, line.raw)
