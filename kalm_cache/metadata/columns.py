"""The metadata of one segment, by column, memory-mapped. Knows nothing of passages, texts or filters.

columns/columns.json      the columns: name -> type, in the order of their folders; how many passages there are
columns/ordinals.npy      (n,) int64, rising: the ordinal of each row
columns/0/codes.npy       (n,) int32: the distinct value of each row, -1 where it has none; of a list column (m,)
columns/0/ends.npy        (n,) int64, of a list column: where each row's codes end
columns/0/terms.npy, …    the distinct values of text and dates, sorted (see `Vocabulary`)
columns/0/instants.npy    (v,) int64, of dates: microseconds since 1970
columns/0/numbers.npy     (v,) float64, of numbers
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import STRICT, Count, checked_fields, read_json_object
from kalm_cache.metadata.column_types import ColumnType, Scalar, Schema, Value, is_list, kind_of, plain_number
from kalm_cache.process.system import refused
from kalm_cache.storage.arrays.rows import load_row
from kalm_cache.storage.arrays.vocabulary import Vocabulary, decode_term

COLUMNS = "columns"  # a segment's folder of them
INFO_NAME, ORDINALS_NAME = "columns.json", "ordinals.npy"
CODES_NAME, ENDS_NAME, INSTANTS_NAME, NUMBERS_NAME = "codes.npy", "ends.npy", "instants.npy", "numbers.npy"
BOOLEANS = np.array([False, True])


@dataclass(frozen=True, slots=True)
class ColumnsInfo:
    """What `columns.json` says."""

    columns: dict[str, ColumnType]
    rows: Count
    __pydantic_config__ = STRICT


class Column:
    """One column: the distinct value of each row, as a code."""

    def __init__(
        self,
        type: ColumnType,
        codes: NDArray[np.int32],
        ends: NDArray[np.int64] | None,
        terms: Vocabulary | None,
        values: NDArray[Any],
    ) -> None:
        """`terms`: of text and dates. `values` (v,): numbers, instants or booleans; of text, none."""
        self.type, self.codes, self.ends = type, codes, ends
        self.terms, self.values = terms, values

    @property
    def distinct(self) -> int:
        """v, how many different values there are."""
        return len(self.values) if self.terms is None else len(self.terms)

    def rows_with(self, chosen: NDArray[np.bool_], rows: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """Whether each row has a value that is chosen: (v,) -> (n,), or of some `rows` (m,) -> (m,)."""
        table = np.append(chosen, False)  # -1, no value, is the last
        if self.ends is None:
            return np.asarray(table[self.codes if rows is None else self.codes[rows]], np.bool_)
        if rows is not None:
            return np.array([bool(table[self._codes_of(int(row))].any()) for row in rows], np.bool_)
        hits = np.concatenate([[0], np.cumsum(table[self.codes], dtype=np.int64)])
        return np.diff(hits[self.ends], prepend=0) > 0

    def value(self, row: int) -> Value | None:
        """What a row has."""
        found = [self._decoded(int(code)) for code in self._codes_of(row) if code >= 0]
        return None if not found else found if self.ends is not None else found[0]

    def decoded(self) -> list[Scalar]:
        """All distinct values (v,)."""
        return [self._decoded(code) for code in range(self.distinct)]

    def _codes_of(self, row: int) -> NDArray[np.int32]:
        if self.ends is None:
            return self.codes[row : row + 1]
        return self.codes[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])]

    def _decoded(self, code: int) -> Scalar:
        if self.terms is not None:
            return decode_term(self.terms[code])
        value = self.values[code].item()
        return value if isinstance(value, bool) else plain_number(value)


class Columns:
    """A segment's columns and the ordinals of its rows. Several threads may read them."""

    def __init__(self, ordinals: NDArray[np.int64], columns: dict[str, Column]) -> None:
        """`ordinals` (n,): rising."""
        self.ordinals, self.by_name = ordinals, columns

    @staticmethod
    def open(segment: Path) -> Columns | None:
        """Map the columns of a segment's folder; `None` where it has none, as those of earlier versions.

        Raises:
            StoreError: a file is missing or damaged.
        """
        folder = segment / COLUMNS
        if not folder.is_dir():
            return None
        try:
            info = checked_fields(ColumnsInfo, read_json_object(folder / INFO_NAME))
            ordinals = load_row(folder / ORDINALS_NAME, [np.int64], mapped=True)
            if len(ordinals) != info.rows or (ordinals[1:] <= ordinals[:-1]).any():
                raise ValueError(f"{ORDINALS_NAME} holds {len(ordinals)} ordinals, not {info.rows} that rise")
            columns = {
                name: _open_column(folder / str(place), type, info.rows)
                for place, (name, type) in enumerate(info.columns.items())
            }
        except (OSError, ValueError) as exc:
            raise StoreError(f"{folder}: cannot be read; {refused(exc, folder)}") from exc
        return Columns(ordinals, columns)

    @property
    def schema(self) -> Schema:
        """Its columns."""
        return {name: column.type for name, column in self.by_name.items()}

    def __len__(self) -> int:
        return len(self.ordinals)

    def rows_of(self, ordinals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The row of each ordinal (m,), and whether it is there."""
        if not len(self.ordinals):
            return np.zeros(len(ordinals), np.int64), np.zeros(len(ordinals), np.bool_)
        rows = np.minimum(np.searchsorted(self.ordinals, ordinals), len(self.ordinals) - 1)
        return rows.astype(np.int64), np.asarray(self.ordinals[rows] == ordinals, np.bool_)

    def values(self, rows: Sequence[int], names: Collection[str] | None = None) -> list[dict[str, Value]]:
        """What each row has, by column; `names`: of these columns alone. Columns without a value are left out."""
        chosen = {name: column for name, column in self.by_name.items() if names is None or name in names}
        found = [{name: column.value(row) for name, column in chosen.items()} for row in rows]
        return [{name: value for name, value in values.items() if value is not None} for values in found]


def _open_column(folder: Path, type: ColumnType, rows: int) -> Column:
    codes = load_row(folder / CODES_NAME, [np.int32], mapped=True)
    ends = load_row(folder / ENDS_NAME, [np.int64], mapped=True) if is_list(type) else None
    terms, values = None, BOOLEANS
    match kind_of(type):
        case "text":
            terms = Vocabulary.open(folder, mapped=True)
            values = np.empty(0)
        case "date":
            terms = Vocabulary.open(folder, mapped=True)
            values = load_row(folder / INSTANTS_NAME, [np.int64], mapped=True)
        case "number":
            values = load_row(folder / NUMBERS_NAME, [np.float64], mapped=True)
    column = Column(type, codes, ends, terms, values)
    if ends is None:
        fits = len(codes) == rows
    else:
        rises = not len(ends) or (ends[0] >= 0 and not (ends[1:] < ends[:-1]).any())
        fits = rises and len(ends) == rows and (int(ends[-1]) if rows else 0) == len(codes)
    if not fits or (len(codes) and not -1 <= codes.min() <= codes.max() < column.distinct):
        raise ValueError(f"the rows of column {folder.name} are not those of its values")
    if kind_of(type) == "date" and len(values) != column.distinct:
        raise ValueError(f"column {folder.name} has not an instant for each of its dates")
    return column
