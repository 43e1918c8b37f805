"""The filter grammar that users of MongoDB, Pinecone and Chroma know: JSON -> a checked tree -> a mask over passages.

    {"lang": "de"}                                    the same as {"lang": {"$eq": "de"}}
    {"year": {"$gte": 2020, "$lt": 2024}}             several conditions: all of them
    {"lang": "de", "tags": {"$in": ["new", "sale"]}}  several fields: all of them
    {"$or": [{"price": {"$lt": 10}}, {"$not": {"stock": {"$exists": true}}}]}

$eq, $ne                 any type; of a list column: one of its values is equal
$in, $nin                a list of values: one of them is equal
$gt, $gte, $lt, $lte     numbers and dates; of a list column: one of its values is
$exists                  true or false: whether there is a value
$and, $or                lists of filters; $not: a filter, or under a field its conditions

`$ne` and `$nin` are the opposite of `$eq` and `$in`: they match what has no value, too. All others do not.
"""

from __future__ import annotations

import difflib
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError
from kalm_cache.metadata.column_types import (
    ColumnType,
    Scalar,
    described,
    instant,
    kind_of,
)
from kalm_cache.metadata.columns import Column, Columns

MAX_DEPTH, MAX_CONDITIONS = 32, 1000
ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
OPERATORS = ("$eq", "$ne", *ORDERINGS, "$in", "$nin", "$exists", "$not")
JUNCTIONS = ("$and", "$or", "$not")
_EXPECTED = {"text": "a string", "number": "a number", "boolean": "true or false", "date": "a date as 2024-05-31"}


class Filter(ABC):
    """A checked filter."""

    @abstractmethod
    def mask(self, columns: Columns, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Whether each passage of a segment matches, (n,); of some `rows` (m,) alone: (m,)."""

    @abstractmethod
    def matches_without_values(self) -> bool:
        """Whether a passage without any value matches."""


@dataclass(frozen=True, slots=True)
class Comparison(Filter):
    """A field has one of some values. `$in` is one of several operands; `$eq`, `$gt` and the like have one."""

    field: str
    operator: str
    operands: tuple[Scalar, ...]

    def mask(self, columns: Columns, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """See `Filter.mask`."""
        column = columns.by_name.get(self.field)
        if column is None:
            return np.zeros(len(columns) if rows is None else len(rows), np.bool_)
        return column.rows_with(self._chosen(column), rows)

    def matches_without_values(self) -> bool:
        """See `Filter.matches_without_values`."""
        return False

    def _chosen(self, column: Column) -> NDArray[np.bool_]:
        """Which of the distinct values (v,) are meant."""
        if self.operator == "$exists":
            return np.ones(column.distinct, np.bool_)
        kind = kind_of(column.type)
        if kind == "text":
            assert column.terms is not None
            chosen = np.zeros(column.distinct, np.bool_)
            chosen[[place for text in self.operands if (place := column.terms.id_of(str(text))) is not None]] = True
            return chosen
        wanted = [instant(str(one)) if kind == "date" else one for one in self.operands]
        if self.operator in ORDERINGS:
            return np.asarray(ORDERINGS[self.operator](column.values, wanted[0]), np.bool_)
        return np.isin(column.values, np.array(wanted, column.values.dtype))


@dataclass(frozen=True, slots=True)
class Every(Filter):
    """Every one of its parts matches; without parts, everything does."""

    parts: tuple[Filter, ...]

    def mask(self, columns: Columns, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """See `Filter.mask`."""
        everything = np.ones(len(columns) if rows is None else len(rows), np.bool_)
        masks = [everything, *(part.mask(columns, rows) for part in self.parts)]
        return np.asarray(np.logical_and.reduce(masks), np.bool_)

    def matches_without_values(self) -> bool:
        """See `Filter.matches_without_values`."""
        return all(part.matches_without_values() for part in self.parts)


@dataclass(frozen=True, slots=True)
class Either(Filter):
    """One of its parts matches."""

    parts: tuple[Filter, ...]

    def mask(self, columns: Columns, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """See `Filter.mask`."""
        return np.asarray(np.logical_or.reduce([part.mask(columns, rows) for part in self.parts]), np.bool_)

    def matches_without_values(self) -> bool:
        """See `Filter.matches_without_values`."""
        return any(part.matches_without_values() for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """Its part does not match."""

    part: Filter

    def mask(self, columns: Columns, rows: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """See `Filter.mask`."""
        return ~self.part.mask(columns, rows)

    def matches_without_values(self) -> bool:
        """See `Filter.matches_without_values`."""
        return not self.part.matches_without_values()


def parse_filter(value: object, schema: Mapping[str, ColumnType]) -> Filter:
    """A filter as JSON has it, checked against the columns of an index.

    Args:
        value: an object of the grammar above.
        schema: the columns.

    Raises:
        UsageError: a field, an operator or a value that does not fit; names it, and the columns where that helps.
    """
    return _Parser(schema).filter(value, 0)


class _Parser:
    def __init__(self, schema: Mapping[str, ColumnType]) -> None:
        self._schema, self._conditions = schema, 0

    def filter(self, value: object, depth: int) -> Filter:
        if not isinstance(value, Mapping):
            raise UsageError(f'filter: expected an object such as {{"lang": "de"}}, got {_shown(value)}')
        if depth > MAX_DEPTH:
            raise UsageError(f"filter: it is nested more than {MAX_DEPTH} deep")
        return _all([self._part(str(name), operand, depth) for name, operand in value.items()])

    def _part(self, name: str, operand: object, depth: int) -> Filter:
        if name in ("$and", "$or"):
            if not isinstance(operand, Sequence) or isinstance(operand, str) or not operand:
                raise UsageError(f"filter: {name} takes a list of filters, got {_shown(operand)}")
            parts = [self.filter(part, depth + 1) for part in operand]
            return _all(parts) if name == "$and" else Either(tuple(parts))
        if name == "$not":
            return Not(self.filter(operand, depth + 1))
        if name.startswith("$") and name not in self._schema:
            raise UsageError(f"filter: no operator {name!r} stands for a whole filter; those are {_listed(JUNCTIONS)}")
        return self._conditions_of(name, self._type_of(name), operand, depth)

    def _type_of(self, field: str) -> ColumnType:
        if field in self._schema:
            return self._schema[field]
        if not self._schema:
            raise UsageError(
                f"filter: no field {field!r}: the index keeps no metadata; kalm-cache reindex CORPUS --metadata all "
                "keeps the fields of the corpus, and encodes nothing again"
            )
        similar = difflib.get_close_matches(field, self._schema, n=1)
        meant = f" (did you mean {similar[0]!r}?)" if similar else ""
        raise UsageError(f"filter: no field {field!r}{meant}; the index has: {described(self._schema)}")

    def _conditions_of(self, field: str, type: ColumnType, operand: object, depth: int) -> Filter:
        if not isinstance(operand, Mapping):
            operand = {"$eq": operand}
        if not operand:
            raise UsageError(f"filter: {field!r} has no condition; give one of {_listed(OPERATORS)}")
        if depth > MAX_DEPTH:
            raise UsageError(f"filter: it is nested more than {MAX_DEPTH} deep")
        return _all([self._condition(field, type, str(name), value, depth) for name, value in operand.items()])

    def _condition(self, field: str, type: ColumnType, name: str, operand: object, depth: int) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise UsageError(f"filter: it has more than {MAX_CONDITIONS} conditions; $in takes any number of values")
        match name:
            case "$not":
                if not isinstance(operand, Mapping):
                    raise UsageError(f"filter: {field!r}: $not takes conditions, got {_shown(operand)}; $ne takes one")
                return Not(self._conditions_of(field, type, operand, depth + 1))
            case "$exists":
                if not isinstance(operand, bool):
                    raise UsageError(f"filter: {field!r}: $exists takes true or false, got {_shown(operand)}")
                exists = Comparison(field, "$exists", ())
                return exists if operand else Not(exists)
            case "$in" | "$nin":
                if not isinstance(operand, (list, tuple, set, frozenset)):
                    raise UsageError(f"filter: {field!r}: {name} takes a list of values, got {_shown(operand)}")
                within = Comparison(field, "$in", tuple(_checked(field, type, name, one) for one in operand))
                return within if name == "$in" else Not(within)
            case "$eq" | "$ne":
                equal = Comparison(field, "$in", (_checked(field, type, name, operand),))
                return equal if name == "$eq" else Not(equal)
        if name in ORDERINGS:
            if kind_of(type) not in ("number", "date"):
                raise UsageError(f"filter: {field!r} is {type}; {name} compares numbers and dates")
            return Comparison(field, name, (_checked(field, type, name, operand),))
        raise UsageError(f"filter: {field!r}: no operator {name!r}; those are {_listed(OPERATORS)}")


def _checked(field: str, type: ColumnType, name: str, value: object) -> Scalar:
    """A value that a column of this type can be compared with."""
    kind = kind_of(type)
    match kind:
        case "boolean" if isinstance(value, (bool, np.bool_)):
            return bool(value)
        case "number" if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
        case "date" if isinstance(value, (str, date)):
            text = value if isinstance(value, str) else value.isoformat()
            if instant(text) is not None:
                return text
        case "text" if isinstance(value, str):
            return str(value)
    hint = ""
    if value is None:
        hint = "; $exists says whether there is a value"
    elif isinstance(value, (list, tuple)):
        hint = "; $in takes a list"
    raise UsageError(f"filter: {field!r} is {type}: {name} takes {_EXPECTED[kind]}, got {_shown(value)}{hint}")


def _all(parts: Sequence[Filter]) -> Filter:
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
