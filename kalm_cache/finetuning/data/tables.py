"""CSV, TSV and Parquet in sentence-transformers' column orders → examples. Order counts, names do not.

(query, passage)                       pairs: every passage is relevant
(query, passage, label)                labelled pairs: the last column holds numbers; from 0.5 on, relevant
(query, positive, negative, …)         triplets, and any number of further negatives

The first line of a CSV names the columns, as `datasets` has it. Rows of one query make one example.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kalm_cache.errors import CorpusError, MissingExtraError
from kalm_cache.finetuning.data.example import Example, Item, Rejected
from kalm_cache.passage import as_doc_id
from kalm_cache.text.lines import MAX_RAW_CHARS, read_lines
from kalm_cache.text.streams import COMPRESSIONS, open_file

LABELS = ("label", "labels", "score", "scores")  # sentence-transformers' names for such a column
RELEVANT = 0.5  # the least label of a relevant passage
Row = tuple[str, Sequence[Any]]  # `file:line`, cells


@dataclass(slots=True)
class _Rows:
    """The rows of one query, put together."""

    source: str
    positives: dict[Item, None] = field(default_factory=dict)
    negatives: dict[Item, None] = field(default_factory=dict)


def read_table(path: Path) -> Iterator[Example | Rejected]:
    """Each query's rows as one example, and rows that cannot be used.

    Raises:
        CorpusError: the file cannot be read, or its columns are none of the orders above.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    names, rows = _parquet(path) if ".parquet" in path.suffixes else _csv(path)
    if len(names) < 2:
        raise CorpusError(f"{path}: {len(names)} column; expected query and passage, or query, positive and negative")
    labelled = len(names) == 3 and names[2].strip().lower() in LABELS
    queries: dict[str, _Rows] = {}
    for source, cells in rows:
        try:
            _add(queries, source, cells, len(names), labelled)
        except ValueError as exc:
            yield Rejected(source, str(exc), str(list(cells))[:MAX_RAW_CHARS])
    for query, of_query in queries.items():
        if of_query.positives:
            negatives = tuple(item for item in of_query.negatives if item not in of_query.positives)
            yield Example(of_query.source, query, tuple(of_query.positives), negatives)
        else:
            yield Rejected(of_query.source, "no row of this query has a relevant passage", query[:MAX_RAW_CHARS])


def _add(queries: dict[str, _Rows], source: str, cells: Sequence[Any], columns: int, labelled: bool) -> None:
    """Take one row in. Raises `ValueError`."""
    if len(cells) != columns:
        raise ValueError(f"{len(cells)} columns, expected {columns} as in the first line")
    query, first = as_doc_id(cells[0], "the query"), _item(cells[1], 2)
    if not query.strip():
        raise ValueError("the query is empty")
    label = _number(cells[2]) if labelled else 1.0
    others = [] if labelled else [_item(cell, i) for i, cell in enumerate(cells[2:], start=3) if cell not in ("", None)]
    of_query = queries.setdefault(query, _Rows(source))
    (of_query.positives if label >= RELEVANT else of_query.negatives)[first] = None
    of_query.negatives.update(dict.fromkeys(others))


def _item(cell: Any, column: int) -> Item:
    return Item(as_doc_id(cell, f"column {column}"), is_id=None if isinstance(cell, str) else True)


def _number(cell: Any) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the label is {cell!r}, expected a number")
    return number


def _csv(path: Path) -> tuple[list[str], Iterator[Row]]:
    """The names in the first row, and the rows behind it."""
    rows = _csv_rows(path)
    _, names = next(rows, ("", []))
    numbers = [name for name in names if _is_number(name)]
    if numbers:
        raise CorpusError(f"{path}:1: the first line holds the number {numbers[0]}; it must name the columns")
    return list(names), rows


def _csv_rows(path: Path) -> Iterator[Row]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with open_file(path, COMPRESSIONS.get(path.suffix)) as stream:
        lines = (line.data.decode("utf-8") for line in read_lines(stream, str(path)))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield f"{path}:{reader.line_num}", cells
        except (csv.Error, UnicodeDecodeError) as exc:
            raise CorpusError(f"{path}:{reader.line_num + 1}: {exc}") from exc


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> tuple[list[str], Iterator[Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as exc:
        raise MissingExtraError("pyarrow", "parquet") from exc
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as exc:  # pyarrow's own errors are among these
        raise CorpusError(f"cannot read {path}: {exc}") from exc
    names = [str(name) for name in table.column_names]
    records = table.to_pylist()
    return names, ((f"{path}:{row}", list(record.values())) for row, record in enumerate(records, start=1))
