"""How a table of text is laid out: delimiter, quotes, header and columns, as told, or guessed from its first lines.

Knows nothing of files or passages.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from indexer.corpus.columns import has_header, require_columns
from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.text.lines import MAX_LINE_BYTES, BadLineError, TextLine

DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_SAMPLE_LINES, _SAMPLE_BYTES = 50, 1 << 20
_HEADERLESS = {2: ("id", "text"), 3: ("id", "title", "text")}  # two: MS MARCO's collection.tsv
_WORDS_OF_A_NAME = 4
_WORDS = re.compile(r"[^\W_]+")
# Words that a header may consist of, although it names no column that is known here.
_HEADER_WORDS = frozenset(
    re.findall(
        r"\w+",
        """_id id doc document docid docno pid key name url uri link title heading text contents content body passage
        paragraph abstract summary description sentence article question answer query label category date author lang
        language source index number no""",
    )
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TableFormat:
    """What is known of CSV and TSV files; `None` = guessed for each file, from its data.

    columns: names in order, `-` for one that is not read.
    header: whether the first line names the columns.
    delimiter: `tab`, `comma`, `semicolon` or `pipe`.
    quotes: whether double quotes enclose fields.
    """

    columns: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None
    quotes: bool | None = None

    def __post_init__(self) -> None:
        """Check the delimiter's name. Raises `UsageError`."""
        if self.delimiter is not None and self.delimiter not in DELIMITERS:
            raise UsageError(f"the delimiter is {self.delimiter!r}; expected {', '.join(DELIMITERS)}")


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one file."""

    names: tuple[str, ...]
    header: bool
    delimiter: str
    quotes: bool


def find_layout(
    lines: Iterator[TextLine], suffix: str, given: TableFormat, say: bool = True
) -> tuple[Layout | None, Iterator[TextLine]]:
    """The layout of a file, and all its lines, blank ones at the start left out; `None` = there is none.

    Args:
        lines: of the file.
        suffix: `csv` or `tsv`.
        given: what is known.
        say: log what was found.

    Raises:
        CorpusError: the columns cannot be told: no id or no text among them.
    """
    # The limit, 131,072 characters by default, is the whole process's: only ever raised, since readers may take turns.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    sample: list[TextLine] = []
    size = 0
    for line in lines:
        if sample or line.data.strip(b" \r\n"):
            sample.append(line)
            size += len(line.data)
        if len(sample) == _SAMPLE_LINES or size > _SAMPLE_BYTES:
            break
    if not sample:
        return None, lines
    layout = _layout(sample, suffix, given)
    if say and layout != Layout(layout.names, True, ",", True):  # a plain CSV file is what its name says
        logger.info("%s: read as %s", sample[0].file_name, _said(layout))
    return layout, chain(sample, lines)


def _layout(sample: Sequence[TextLine], suffix: str, given: TableFormat) -> Layout:
    texts = _texts(sample, suffix)
    quotes = suffix == "csv" if given.quotes is None else given.quotes
    delimiter = "\t" if suffix == "tsv" else _likely_delimiter(texts, quotes)
    delimiter = DELIMITERS[given.delimiter] if given.delimiter else delimiter
    if given.quotes is None and not quotes:
        quotes = _are_quoted(texts, delimiter)
    rows = _rows(texts, delimiter, quotes)
    header = _is_header(rows, suffix) if given.header is None else given.header
    return Layout(_names(sample[0], rows, header, given.columns), header, delimiter, quotes)


def _names(
    first: TextLine, rows: Sequence[Sequence[str]], header: bool, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    if given is not None:
        names: Sequence[str] = given
    elif header:
        names = _known(rows[0])
    else:
        names = _likely_columns(rows)
        if not names:
            raise CorpusError(
                f"{first.location}: {len(rows[0])} columns and no header; give 2 (id, text) or 3 (id, title, text), "
                "or a first line with their names, or say which is which with --columns"
            )
    require_columns(names, first.file_name)
    return tuple(names)


def _known(cells: Sequence[str]) -> list[str]:
    """The header's names; `ID` and `Text` are as good as `id` and `text`."""
    names = [cell.strip() for cell in cells]
    if has_header(names):
        return names
    return [name.lower() for name in names] if has_header([name.lower() for name in names]) else names


def _is_header(rows: Sequence[Sequence[str]], suffix: str) -> bool:
    """Whether the first row names columns: known ones, or by words that headers are made of."""
    words = [_WORDS.findall(cell.lower()) for cell in rows[0]]
    if has_header(_known(rows[0])):
        return not any(cell.strip().isdecimal() for cell in rows[0])
    if all(found and _HEADER_WORDS.issuperset(found) for found in words):
        return True
    return suffix == "csv" and all(_may_be_a_name(cell) for cell in rows[0])


def _may_be_a_name(cell: str) -> bool:
    return not cell.strip().isdecimal() and len(cell.split()) <= _WORDS_OF_A_NAME


def _likely_columns(rows: Sequence[Sequence[str]]) -> Sequence[str]:
    """The columns of a file without a header: the id has no blanks and no two are alike, the text is the longest."""
    names, width = _HEADERLESS.get(len(rows[0]), ()), len(rows[0])
    whole = [row for row in rows if len(row) == width]
    if not names or len(whole) < 2:
        return names
    columns = list(zip(*whole, strict=True))
    ids = [i for i, cells in enumerate(columns) if all(map(_is_id, cells)) and len(set(cells)) == len(cells)]
    if not ids or 0 in ids:
        return names
    rest = sorted((i for i in range(width) if i != ids[0]), key=lambda i: sum(map(len, columns[i])))
    found = {ids[0]: "id", rest[-1]: "text"}
    return [found.get(i, "title") for i in range(width)]


def _is_id(cell: str) -> bool:
    return bool(cell) and not any(char.isspace() for char in cell)


def _likely_delimiter(texts: Sequence[str], quotes: bool) -> str:
    """The delimiter whose first row names known columns, or else which gives most rows the same several columns."""

    def merit(delimiter: str) -> tuple[bool, float]:
        rows = _rows(texts, delimiter, quotes)
        width, count = Counter(map(len, rows)).most_common(1)[0]
        return has_header(_known(rows[0])) and len(rows[0]) > 1, count / len(rows) if width > 1 else 0.0

    return max((",", ";", "\t", "|"), key=merit)


def _are_quoted(texts: Sequence[str], delimiter: str) -> bool:
    """Whether quotes enclose fields: some hold doubled ones, as only a writer of quoted fields makes them."""
    cells = [cell for text in texts for cell in text.rstrip("\r\n").split(delimiter) if cell.startswith('"')]
    inner = [cell[1:-1] for cell in cells if len(cell) > 1 and cell.endswith('"')]
    proper = len(inner) == len(cells) and all('"' not in cell.replace('""', "") for cell in inner)
    return proper and any('""' in cell for cell in inner)


def _rows(texts: Sequence[str], delimiter: str, quotes: bool) -> list[list[str]]:
    """The rows of the sample, at least one; the last may be cut off, and what is no CSV is split as it is."""
    if quotes:
        try:
            rows = [row for row in csv.reader(texts, delimiter=delimiter) if row]
            return (rows[:-1] if len(rows) > 1 and len(texts) == _SAMPLE_LINES else rows) or [[""]]
        except csv.Error:
            pass
    return [text.rstrip("\r\n").split(delimiter) for text in texts if text.strip()]


def _texts(sample: Sequence[TextLine], suffix: str) -> list[str]:
    if suffix == "csv":
        try:
            sample[0].text()
        except BadLineError as exc:
            raise CorpusError(f"{sample[0].location}: cannot read the header: {exc.reason}") from exc
    return [line.data.decode("utf-8", "replace") for line in sample]


def _said(layout: Layout) -> str:
    delimiter = next(name for name, char in DELIMITERS.items() if char == layout.delimiter)
    header = "a header" if layout.header else "no header"
    quotes = "quoted fields" if layout.quotes else "quotes that mean nothing"
    return f"{', '.join(layout.names)} with {header}, {delimiter} between columns and {quotes}"
