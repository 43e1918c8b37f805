"""Tab-separated lines → passages. Knows nothing of files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from indexer.corpus.columns import has_header, require_columns, row_passage
from indexer.corpus.values import CorpusLine, RejectedLine
from kalm_cache.errors import CorpusError
from kalm_cache.text.lines import BadLineError, TextLine

_HEADERLESS = {2: ["id", "text"], 3: ["id", "title", "text"]}  # two: MS MARCO's collection.tsv


def read_tsv(lines: Iterator[TextLine]) -> Iterator[CorpusLine | RejectedLine]:
    """One value for each line that is not blank. Quotes mean nothing: a line is a row, a tab ends a column.

    Raises:
        CorpusError: the first line is no header that names an id and a text, nor has 2 or 3 columns.
    """
    filled = (line for line in lines if line.data.strip(b" \r\n"))
    first = next(filled, None)
    if first is None:
        return
    cells = _cells(first.data.decode("utf-8", "replace"))
    names = [cell.strip() for cell in cells]
    if has_header(names):
        require_columns(names, first.file_name)
    else:
        names = _headerless_columns(first, len(cells))
        filled = (line for line in itertools.chain([first], filled))
    for line in filled:
        yield _read_row(names, line)


def _headerless_columns(first: TextLine, count: int) -> list[str]:
    if count not in _HEADERLESS:
        raise CorpusError(
            f"{first.location}: {count} columns and no header; give 2 (id, text) or 3 (id, title, text), "
            "or a first line with their names"
        )
    return _HEADERLESS[count]


def _read_row(names: Sequence[str], line: TextLine) -> CorpusLine | RejectedLine:
    try:
        return CorpusLine(row_passage(names, _cells(line.text())), line.location)
    except BadLineError as exc:
        return RejectedLine.of(exc, line.location, line.raw)


def _cells(text: str) -> list[str]:
    return text.removesuffix("\n").removesuffix("\r").split("\t")
