"""Values by passage -> the columns of a segment. In memory: 4 bytes for each value, and the distinct values.

What the files hold is described in `columns.py`.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.metadata.column_types import ColumnType, Value, instant, is_list, kind_of
from kalm_cache.metadata.columns import (
    CODES_NAME,
    COLUMNS,
    ENDS_NAME,
    INFO_NAME,
    INSTANTS_NAME,
    NUMBERS_NAME,
    ORDINALS_NAME,
    Column,
    Columns,
    ColumnsInfo,
)
from kalm_cache.storage.arrays.vocabulary import Vocabulary, encode_term


def write_columns(
    segment: Path, schema: Mapping[str, ColumnType], rows: Iterable[tuple[int, Mapping[str, Value]]]
) -> None:
    """Write the columns of a segment into its folder, in the place of those that are there.

    Args:
        segment: its folder.
        schema: the columns.
        rows: ordinal and values of each passage, by rising ordinal; values of columns that the schema does not have
            are left out. The values are as `converted` makes them.

    Raises:
        OSError: a file cannot be written.
    """
    writers = {name: _ColumnWriter(type) for name, type in schema.items()}
    ordinals = array("q")
    for ordinal, values in rows:
        ordinals.append(ordinal)
        for name, writer in writers.items():
            writer.add(values.get(name))
    _write(segment, np.array(ordinals, np.int64), writers)


def rewrite_columns(
    segment: Path, before: Columns, schema: Mapping[str, ColumnType], changed: Mapping[int, Mapping[str, Value]]
) -> None:
    """Write the columns of a segment with other values for some of its passages.

    Args:
        segment: its folder; files in it that have other names elsewhere are replaced, not changed.
        before: its columns so far.
        schema: the columns; those that it did not have are added.
        changed: all values of a passage, by its ordinal, which is in the segment.

    Raises:
        OSError: a file cannot be written.
    """
    ordinals = np.array(sorted(changed), np.int64)
    rows, present = before.rows_of(ordinals)
    assert present.all()
    writers = {}
    for name, type in schema.items():
        writer = writers[name] = _ColumnWriter(type)
        writer.take(before.by_name.get(name), len(before))
        writer.replace(rows, [changed[ordinal].get(name) for ordinal in ordinals.tolist()])
    _write(segment, np.array(before.ordinals), writers)


def _write(segment: Path, ordinals: NDArray[np.int64], writers: Mapping[str, _ColumnWriter]) -> None:
    folder = segment / f"{COLUMNS}.building"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    np.save(folder / ORDINALS_NAME, ordinals)
    for place, writer in enumerate(writers.values()):
        (folder / str(place)).mkdir()
        writer.write(folder / str(place))
    info = ColumnsInfo({name: writer.type for name, writer in writers.items()}, len(ordinals))
    (folder / INFO_NAME).write_text(json.dumps(asdict(info)) + "\n", encoding="utf-8")
    shutil.rmtree(segment / COLUMNS, ignore_errors=True)
    folder.rename(segment / COLUMNS)


class _ColumnWriter:
    """Gives each distinct value a number as it comes; the final codes follow the order of the values."""

    def __init__(self, type: ColumnType) -> None:
        self.type, self._kind, self._is_list = type, kind_of(type), is_list(type)
        self._numbers: dict[Any, int] = {}
        self._codes, self._ends = array("i"), array("q")

    def add(self, value: Value | None) -> None:
        """The next row's."""
        if isinstance(value, list):
            self._codes.extend(self._numbers.setdefault(item, len(self._numbers)) for item in value)
        elif not self._is_list:
            self._codes.append(-1 if value is None else self._numbers.setdefault(value, len(self._numbers)))
        self._ends.append(len(self._codes))

    def take(self, column: Column | None, rows: int) -> None:
        """All rows of a column that is stored; `None`: none of so many rows has a value."""
        if column is None:
            self._codes = array("i", () if self._is_list else (-1,) * rows)
            self._ends = array("q", (0,) * rows if self._is_list else range(1, rows + 1))
            return
        self._numbers = {value: code for code, value in enumerate(column.decoded())}
        self._codes = array("i", column.codes.tobytes())
        ends = np.arange(1, rows + 1) if column.ends is None else column.ends
        self._ends = array("q", np.asarray(ends, np.int64).tobytes())

    def replace(self, rows: NDArray[np.int64], values: Sequence[Value | None]) -> None:
        """Other values for some rows (m,), which rise."""
        new = _ColumnWriter(self.type)
        new._numbers = self._numbers
        for value in values:
            new.add(value)
        ends = np.array(self._ends, np.int64)
        lengths, new_ends = np.diff(ends, prepend=0), np.array(new._ends, np.int64)
        stays = np.ones(len(ends), np.bool_)
        stays[rows] = False
        new_lengths = lengths.copy()
        new_lengths[rows] = np.diff(new_ends, prepend=0)
        codes = np.empty(int(new_lengths.sum()), np.int32)
        codes[np.repeat(stays, new_lengths)] = np.array(self._codes, np.int32)[np.repeat(stays, lengths)]
        codes[np.repeat(~stays, new_lengths)] = np.array(new._codes, np.int32)
        self._codes, self._ends = array("i", codes.tobytes()), array("q", np.cumsum(new_lengths).tobytes())

    def write(self, folder: Path) -> None:
        """Write the files of the column. Values that no row has are left out."""
        codes = np.array(self._codes, np.int32)
        every, used = list(self._numbers), np.zeros(len(self._numbers) + 1, np.bool_)
        used[codes] = True
        values = [value for value, is_used in zip(every, used[:-1].tolist(), strict=True) if is_used]
        compact = np.append(np.cumsum(used[:-1]) - 1, -1).astype(np.int32)  # the last: of no value
        if self._kind in ("text", "date"):
            encoded = [encode_term(value) for value in values]
            order = sorted(range(len(values)), key=encoded.__getitem__)
            Vocabulary.write((encoded[i] for i in order), folder)
        else:
            order = sorted(range(len(values)), key=values.__getitem__)
        if self._kind == "date":
            np.save(folder / INSTANTS_NAME, np.array([instant(values[i]) for i in order], np.int64))
        elif self._kind == "number":
            np.save(folder / NUMBERS_NAME, np.array([values[i] for i in order], np.float64))
        ranks = np.full(len(values) + 1, -1, np.int32)  # the last: of no value
        ranks[order] = [int(values[i]) for i in order] if self._kind == "boolean" else np.arange(len(values))
        np.save(folder / CODES_NAME, ranks[compact[codes]])
        if self._is_list:
            np.save(folder / ENDS_NAME, np.array(self._ends, np.int64))
