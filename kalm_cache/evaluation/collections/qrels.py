"""A file of judgments → grades. Delimiter, header and columns are guessed from the data, and logged, or told.

BEIR   query id, passage id, grade       tabs; with or without a header
TREC   query id, 0, passage id, grade    tabs or blanks

Knows nothing of texts or measures.
"""

from __future__ import annotations

import csv
import itertools
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.text.lines import for_each_line, read_lines
from kalm_cache.text.streams import COMPRESSIONS, open_file

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> grade
ROLES = ("query", "passage", "grade")
UNUSED = "-"
DELIMITERS = {"tab": "\t", "comma": ",", "blank": None}
_NAMES = {  # of columns in headers, without blanks, - and _
    **dict.fromkeys(("query", "queryid", "qid", "topic", "topicid"), "query"),
    **dict.fromkeys(("corpusid", "passageid", "pid", "docid", "documentid", "docno", "doc", "passage"), "passage"),
    **dict.fromkeys(("score", "grade", "relevance", "rel", "label", "judgment", "judgement"), "grade"),
}
_SAMPLE_LINES = 200
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QrelsFormat:
    """What is known of a file of judgments; `None` = guessed from its data.

    columns: `query`, `passage`, `grade` and `-` (does not count), in the file's order.
    header: whether the first line names the columns.
    delimiter: `tab`, `comma` or `blank`.
    """

    columns: tuple[str, ...] | None = None
    header: bool | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        """Check the names. Raises `UsageError`."""
        if self.columns is not None and sorted(name for name in self.columns if name != UNUSED) != sorted(ROLES):
            got = ",".join(self.columns)
            raise UsageError(f"the columns of judgments are {got}; expected query, passage and grade, and - for others")
        if self.delimiter is not None and self.delimiter not in DELIMITERS:
            raise UsageError(f"the delimiter of judgments is {self.delimiter!r}; expected {', '.join(DELIMITERS)}")

    def over(self, default: QrelsFormat) -> QrelsFormat:
        """What this says, and where it says nothing, what the other does."""
        return QrelsFormat(
            self.columns or default.columns,
            default.header if self.header is None else self.header,
            self.delimiter or default.delimiter,
        )


GUESSED = QrelsFormat()


@dataclass(frozen=True, slots=True)
class _Layout:
    columns: tuple[str, ...]
    header: bool
    delimiter: str


def read_qrels(path: Path, queries: Collection[str], given: QrelsFormat) -> Qrels:
    """Grades by query id and passage id, in the file's order. Of several grades for one pair the last one counts.

    Args:
        path: the file, maybe gzipped.
        queries: ids of the collection's queries.
        given: what is known of the file.

    Raises:
        CorpusError: it cannot be read, its columns cannot be told, or a line is bad (named as `file:line`).
    """
    sample = _sample(path)
    if not sample:
        return {}
    layout = _find_layout(sample, queries, given, path)
    logger.info("%s: read as %s", path, _said(layout))
    qrels: Qrels = {}
    again: list[tuple[str, str]] = []
    header = itertools.chain([layout.header], itertools.repeat(False))  # of the lines that are not blank

    def read(line: str, number: int) -> None:
        if next(header):
            return
        query_id, doc_id, grade = _judgment(line, layout)
        if query_id not in queries:
            raise ValueError(f"query id {query_id!r} is not among the queries")
        grades = qrels.setdefault(query_id, {})
        if grades.get(doc_id, grade) != grade:
            again.append((query_id, doc_id))
        grades[doc_id] = grade

    for_each_line(path, read)
    if again:
        query_id, doc_id = again[0]
        message = "%s: %d pairs have several grades, as query %r and passage %r; the last one counts"
        logger.warning(message, path, len(again), query_id, doc_id)
    return qrels


def judged(name: str, qrels: Qrels, queries: Collection[str]) -> Qrels:
    """The judgments of queries that a collection has; others, and queries without any, are logged."""
    unknown = [query_id for query_id in qrels if query_id not in queries]
    if unknown:
        logger.warning("%s: judgments of %d queries that it does not have, as %r", name, len(unknown), unknown[0])
    kept = {query_id: grades for query_id, grades in qrels.items() if query_id in queries}
    if len(kept) < len(queries):
        without = len(queries) - len(kept)
        logger.info("%s: %d of %d queries have no judgment and are left out", name, without, len(queries))
    return kept


def _sample(path: Path) -> list[str]:
    """The first lines that are not blank. Bad bytes are left to the reading of all of them."""
    with open_file(path, COMPRESSIONS.get(path.suffix)) as stream:
        lines = (line.data.decode("utf-8", "replace").rstrip("\r\n") for line in read_lines(stream, str(path)))
        return list(itertools.islice((line for line in lines if line.strip()), _SAMPLE_LINES))


def _find_layout(sample: Sequence[str], queries: Collection[str], given: QrelsFormat, path: Path) -> _Layout:
    delimiter = given.delimiter or _likely_delimiter(sample)
    rows = [_cells(line, delimiter) for line in sample]
    columns = given.columns or _named_columns(rows[0]) or _likely_columns(rows[1:] or rows, queries)
    if columns is None:
        raise CorpusError(
            f"{path}: {len(rows[0])} columns, and which are query id, passage id and grade cannot be told; "
            "say so with --qrels-columns (qrels_columns), as query,-,passage,grade"
        )
    header = _is_header(rows[0], columns, queries) if given.header is None else given.header
    return _Layout(columns, header, delimiter)


def _likely_delimiter(sample: Sequence[str]) -> str:
    """Tab or comma where most lines have two of them, else blanks."""
    for name in ("tab", "comma"):
        if sum(line.count(str(DELIMITERS[name])) >= 2 for line in sample) * 2 > len(sample):
            return name
    return "tab" if any("\t" in line for line in sample) else "blank"


def _named_columns(first: Sequence[str]) -> tuple[str, ...] | None:
    """The columns that a header names; `None` where it does not name all three, each once."""
    names = [cell.strip().lower().replace("-", "").replace("_", "").replace(" ", "") for cell in first]
    roles = tuple(_NAMES.get(name, UNUSED) for name in names)
    return roles if sorted(role for role in roles if role != UNUSED) == sorted(ROLES) else None


def _likely_columns(rows: Sequence[Sequence[str]], queries: Collection[str]) -> tuple[str, ...] | None:
    """Query ids are those of the queries, grades are few different numbers, and TREC has a column of one value."""
    width = Counter(map(len, rows)).most_common(1)[0][0]
    columns = list(zip(*(row for row in rows if len(row) == width), strict=True))
    if width not in (3, 4):
        return ("query", "passage", "grade") if width < 3 else None
    query = max(range(width), key=lambda i: sum(cell in queries for cell in columns[i]))
    rest = [i for i in range(width) if i != query]
    if width == 4:
        constant = [i for i in rest if set(columns[i]) in ({"0"}, {"Q0"}, {"q0"}, {"1"})]
        if not constant:
            return None
        rest.remove(constant[0])
    numeric = [i for i in rest if all(_number(cell) is not None for cell in columns[i])]
    grade = min(reversed(numeric or rest), key=lambda i: len(set(columns[i])) if numeric else 0)
    roles = {query: "query", grade: "grade", next(i for i in rest if i != grade): "passage"}
    return tuple(roles.get(i, UNUSED) for i in range(width))


def _is_header(first: Sequence[str], columns: Sequence[str], queries: Collection[str]) -> bool:
    """Whether the first row is no judgment: its grade is no number, and its query is none."""
    row = dict(zip(columns, first, strict=False))
    return row.get("query") not in queries and _number(row.get("grade", "")) is None


def _judgment(line: str, layout: _Layout) -> tuple[str, str, int]:
    cells, count = _cells(line, layout.delimiter), len(layout.columns)
    if len(cells) != count:
        wanted = "query id, passage id and grade" if count == len(ROLES) else ", ".join(layout.columns)
        between = f"{layout.delimiter}s"
        raise ValueError(f"{len(cells)} columns, expected {count}: {wanted}, with {between} between them")
    row = dict(zip(layout.columns, cells, strict=True))
    grade = _number(row["grade"])
    if grade is None or not grade.is_integer():
        raise ValueError(f"the grade is {row['grade']!r}, expected a whole number")
    return row["query"], row["passage"], int(grade)


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == "comma":
        return next(csv.reader([line]), [])
    return line.split(DELIMITERS[delimiter])


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _said(layout: _Layout) -> str:
    header = "a header" if layout.header else "no header"
    return f"{', '.join(layout.columns)} with {header} and {layout.delimiter}s between columns"
