"""What a metadata column holds, and which type the values of a corpus have. Knows nothing of files.

| type | values | in JSON |
|---|---|---|
| text | strings | a string |
| number | 64-bit floats; whole numbers up to 2^53 are exact | a number |
| boolean | true, false | true, false |
| date | instants; without an offset in UTC, without a time midnight | a string: 2024-05-31, 2024-05-31T08:00:00Z |
| text[], number[], boolean[], date[] | several of these | a list |

Null, an empty string, an empty list and an empty object are no value. Columns of tables hold strings: there a number
or a boolean may be written out (`Cell`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, cast, get_args

Kind = Literal["text", "number", "boolean", "date"]
ColumnType = Literal["text", "number", "boolean", "date", "text[]", "number[]", "boolean[]", "date[]"]
Scalar = str | int | float | bool
Value = Scalar | list[Any]  # a list of scalars of one kind
Schema = dict[str, ColumnType]  # by the names of the columns

NO_VALUES: tuple[object, ...] = (None, "", [], {})
EXACT = 1 << 53  # whole numbers up to here are floats without a loss
MAX_NAME_CHARS, MAX_COLUMNS = 200, 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d\S*)?", re.ASCII)
_ORDER: tuple[Kind, ...] = ("text", "date", "number", "boolean")


class Cell(str):
    """A string of a table's column, where a number or a boolean may be written out."""

    __slots__ = ()


def kind_of(column: ColumnType) -> Kind:
    """The kind of a column's single values."""
    return cast(Kind, column.removesuffix("[]"))


def is_list(column: ColumnType) -> bool:
    """Whether a passage may have several values in the column."""
    return column.endswith("[]")


def as_column_type(name: str) -> ColumnType:
    """The type of that name. Raises `ValueError` that lists all."""
    if name not in get_args(ColumnType):
        raise ValueError(f"{name!r} is no type of a column; those are {', '.join(get_args(ColumnType))}")
    return cast(ColumnType, name)


def instant(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date, with or without a time; `None` where a text is none."""
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def guess_type(values: Sequence[object]) -> ColumnType | None:
    """The type that values of one column have, as they come from a corpus; `None` where none has any.

    One list makes the column one of lists. Of several kinds, the one that most values have; strings are dates where
    all of them are, and cells are numbers or booleans where all of them are.
    """
    flat = [item for value in values for item in (value if isinstance(value, (list, tuple)) else (value,))]
    kinds = [found for item in flat if item not in NO_VALUES and (found := _kinds(item))]
    if not kinds:
        return None
    common = set.intersection(*kinds)
    if not common:
        votes = Counter(kind for found in kinds for kind in found)
        most = max(votes.values())
        common = {kind for kind, count in votes.items() if count == most}
    kind = next(kind for kind in ("boolean", "number", "date", "text") if kind in common)
    suffix = "[]" if any(isinstance(value, (list, tuple)) for value in values) else ""
    return as_column_type(kind + suffix)


def _kinds(value: object) -> set[Kind]:
    """Every kind that one value could be of."""
    return {kind for kind in _ORDER if _converted(value, kind) is not None}


def converted(value: object, column: ColumnType) -> Value | None:
    """A corpus's value as a column keeps it; `None` where there is none.

    Raises:
        ValueError: it does not fit the type; says what it is.
    """
    if value in NO_VALUES:
        return None
    if isinstance(value, (list, tuple)):
        if not is_list(column):
            raise ValueError(f"holds a list, and the column is {column}")
        found = [_single(item, column) for item in value if item not in NO_VALUES]
        return found or None
    single = _single(value, column)
    return [single] if is_list(column) else single


def _single(value: object, column: ColumnType) -> Scalar:
    found = _converted(value, kind_of(column))
    if found is None:
        raise ValueError(f"holds {_shown(value)}, and the column is {column}")
    return found


def _converted(value: object, kind: Kind) -> Scalar | None:
    """One value as one of a kind; `None` where it is not of that kind."""
    if kind == "boolean":
        if isinstance(value, Cell):
            return {"true": True, "false": False}.get(value.lower())
        return value if isinstance(value, bool) else None
    if kind == "number":
        return _number(value)
    if isinstance(value, date):  # a datetime is one, too
        return value.isoformat()
    if not isinstance(value, str) or not _is_unicode(value):
        return None
    return str(value) if kind == "text" or instant(value) is not None else None


def _number(value: object) -> int | float | None:
    if isinstance(value, Cell):
        try:
            value = float(value) if any(mark in value for mark in ".eE") else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    if isinstance(value, int):
        return value if abs(value) <= EXACT else None
    number = float(value)
    return plain_number(number) if math.isfinite(number) else None


def plain_number(number: float) -> int | float:
    """Whole numbers as `int`, as far as floats hold them exactly."""
    return int(number) if number.is_integer() and abs(number) <= EXACT else number


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list within a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > EXACT:
        return f"{value}, which no 64-bit float holds exactly (write it as a string)"
    text = repr(value) if not isinstance(value, Cell) else repr(str(value))
    return text if len(text) <= 60 else f"{text[:60]}…"


def described(schema: Mapping[str, ColumnType]) -> str:
    """The columns and their types, for messages."""
    return ", ".join(f"{name} ({column})" for name, column in schema.items()) or "none"
