"""Arguments of public functions → plain values, or a `UsageError` that names the argument and the position.

Knows nothing of what the values are for. Lists may be lists, tuples, arrays or generators; what has no order, or is one
string in place of a list, is refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Set
from numbers import Integral, Real
from typing import Any

from kalm_cache.errors import UsageError
from kalm_cache.passage import ID_NAMES, PassageTemplate, as_doc_id, as_text

PAIRS = "(query, document) pairs"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def as_list(values: Any, name: str, of: str = "strings") -> list[Any]:
    """The items of a list-like argument, in order.

    Args:
        values: a list, tuple, array, generator or the like.
        name: of the argument.
        of: what the items should be, in words.

    Raises:
        UsageError: a string, a set, a mapping, `None` or whatever else has no items in order.
    """
    if isinstance(values, str):
        raise UsageError(f"{name} is one string; expected a list of {of}")
    is_set = isinstance(values, Set) and not isinstance(values, KeysView | ItemsView)
    if is_set or isinstance(values, bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        raise UsageError(f"{name} is {_shown(values)}; expected a list of {of}")
    try:
        return list(values)
    except TypeError as exc:  # an array without dimensions
        raise UsageError(f"{name} is {_shown(values)}; expected a list of {of}") from exc


def check_text(value: Any, name: str) -> str:
    """A text that can be stored and sent. Raises `UsageError` for anything else, half a surrogate pair included."""
    try:
        return as_text(value, name)
    except ValueError as exc:
        raise UsageError(
            str(exc) if isinstance(value, str) else f"{name} is {_shown(value)}; expected a string"
        ) from exc


def check_texts(values: Any, name: str) -> list[str]:
    """A list of texts. Raises `UsageError`, with the position of the first one that is none."""
    return [check_text(value, f"{name}[{i}]") for i, value in enumerate(as_list(values, name))]


def check_doc_id(value: Any, name: str) -> str:
    """An id as the corpus takes it: a string, or a whole number, which stands for its digits. Raises `UsageError`."""
    try:
        return as_doc_id(value, name)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def check_doc_ids(values: Any, name: str = "ids") -> list[str]:
    """A list of ids. Raises `UsageError`, with the position of the first one that is none."""
    return [check_doc_id(value, f"{name}[{i}]") for i, value in enumerate(as_list(values, name, "ids"))]


def check_fields(document: Any, name: str) -> str | dict[str, Any]:
    """A document as it can be sent: a text, or its fields; what they make is the service's to say.

    Raises:
        UsageError: it is neither, or has an id that is none, or half a surrogate pair in it.
    """
    if not isinstance(document, Mapping):
        if not isinstance(document, str):
            raise UsageError(f"{name} is {_shown(document)}; expected a string, or a mapping with a text")
        return check_text(document, name)
    fields: dict[str, Any] = {}
    for field, value in document.items():
        if field in ID_NAMES and value is not None:
            fields[field] = check_doc_id(value, f"{name}[{field!r}]")
        else:
            fields[field] = check_text(value, f"{name}[{field!r}]") if isinstance(value, str) else value
    return fields


def check_document(value: Any, name: str, template: PassageTemplate) -> str:
    """The passage of a document: a text, or a mapping whose fields `template` makes a text of.

    Raises:
        UsageError: it is neither, has no text, or has a field that is neither an id nor part of the passage.
    """
    fields = check_fields(value, name)
    if isinstance(fields, str):
        return fields
    unused = template.unused(fields)
    if unused:
        raise UsageError(
            f"{name} has the field {unused[0]!r}, which is no part of the passage: passage_template is "
            f"{template.pattern!r}; take the field out, or name it there"
        )
    return check_record(fields, name, template)


def check_record(record: Mapping[str, Any], name: str, template: PassageTemplate) -> str:
    """The passage that a record's fields make. Raises `UsageError` for one that is missing or no string."""
    try:
        return template.text_of(record)
    except ValueError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def check_pairs(pairs: Any, name: str = "pairs") -> list[tuple[str, Any]]:
    """(query, document) pairs, from whatever has two items each; a document is a text, or a mapping not looked into.

    Raises:
        UsageError: one that is no pair of them; names its position.
    """
    return [check_pair(pair, f"{name}[{i}]") for i, pair in enumerate(as_list(pairs, name, PAIRS))]


def check_pair(pair: Any, name: str) -> tuple[str, Any]:
    """One of `check_pairs`. Raises `UsageError`."""
    items = [] if isinstance(pair, str | bytes | Mapping | Set) or not isinstance(pair, Iterable) else list(pair)
    if len(items) != 2 or not isinstance(items[0], str) or not isinstance(items[1], str | Mapping):
        raise UsageError(f"{name} is {_shown(pair)}; expected two strings: (query, document)")
    query, document = items
    return check_text(query, name), check_text(document, name) if isinstance(document, str) else document


def check_count(value: Any, name: str, least: int | None = 1) -> int:
    """A whole number of `least` or more, or any. Raises `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or (least is not None and int(value) < least):
        bound = "" if least is None else f", {least} or more"
        raise UsageError(f"{name} is {_shown(value)}; it must be a whole number{bound}")
    return int(value)


def check_limit(value: Any, name: str, least: int | None = 1) -> int | None:
    """As `check_count`; `None` = no limit, or the default. Raises `UsageError`."""
    return None if value is None else check_count(value, name, least)


def check_weight(value: Any, name: str) -> float:
    """A finite number of 0 or more. Raises `UsageError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise UsageError(f"{name} is {_shown(value)}, expected a number of 0 or more")
    return float(value)


def check_probability(value: Any, name: str) -> float | None:
    """A number from 0 to 1, or `None`. Raises `UsageError`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1):
        raise UsageError(f"{name} is {_shown(value)}, expected a number from 0 to 1")
    return None if value is None else float(value)


def _shown(value: Any) -> str:
    return _SHORT.repr(value)
