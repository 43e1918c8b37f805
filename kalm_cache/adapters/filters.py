"""Filters of other libraries -> the grammar of `kalm_cache.metadata.filters`. Imports none of these libraries.

    index.search(query, filter=from_llama_index(filters))    MetadataFilters, MetadataFilter
    index.search(query, filter=from_langchain(filter))       Comparison, Operation, or a StructuredQuery with one
    index.search(query, filter=from_haystack(filters))       {"operator": "AND", "conditions": [...]}

What has no counterpart (text search, patterns) is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kalm_cache.errors import UsageError

FilterJson = dict[str, Any]
_SYMBOLS = {"==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte", "in": "$in"}
_LLAMA_INDEX = _SYMBOLS | {"nin": "$nin", "any": "$in", "contains": "$eq"}
_HAYSTACK = _SYMBOLS | {"not in": "$nin"}
_LANGCHAIN = {name: f"${name}" for name in ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")} | {"contain": "$eq"}
_PREFIXES = ("meta.", "metadata.")


def from_llama_index(filters: Any) -> FilterJson:
    """A `MetadataFilters`, or one `MetadataFilter`. Raises `UsageError` for an operator without a counterpart."""
    nested = getattr(filters, "filters", None)
    if nested is None:
        return _llama_index_comparison(str(filters.key), _name(filters.operator), filters.value)
    return _joined(_name(filters.condition or "and"), [from_llama_index(one) for one in nested])


def _llama_index_comparison(field: str, operator: str, value: Any) -> FilterJson:
    if operator == "is_empty":
        return {field: {"$exists": False}}
    if operator == "all":
        return _joined("and", [{field: {"$eq": one}} for one in value])
    return {field: {_known(operator, _LLAMA_INDEX): value}}


def from_langchain(filter: Any) -> FilterJson:
    """A `Comparison` or `Operation` of `langchain_core.structured_query`, or a `StructuredQuery` with one.

    Raises `UsageError` for an operator without a counterpart.
    """
    if hasattr(filter, "query") and hasattr(filter, "filter"):
        return {} if filter.filter is None else from_langchain(filter.filter)
    if hasattr(filter, "arguments"):
        return _joined(_name(filter.operator), [from_langchain(one) for one in filter.arguments])
    return {str(filter.attribute): {_known(_name(filter.comparator), _LANGCHAIN): _plain(filter.value)}}


def from_haystack(filters: Mapping[str, Any]) -> FilterJson:
    """Filters as Haystack's document stores take them; `meta.` in front of a field is left out.

    Raises `UsageError` for an operator without a counterpart.
    """
    if "conditions" in filters:
        return _joined(str(filters["operator"]).lower(), [from_haystack(one) for one in filters["conditions"]])
    field = str(filters["field"])
    for prefix in _PREFIXES:
        field = field.removeprefix(prefix)
    return {field: {_known(str(filters["operator"]), _HAYSTACK): filters["value"]}}


def _joined(operator: str, parts: Sequence[FilterJson]) -> FilterJson:
    join: Callable[[list[FilterJson]], FilterJson] | None = {
        "and": lambda parts: {"$and": parts} if parts else {},
        "or": lambda parts: {"$or": parts},
        "not": lambda parts: {"$not": {"$and": parts}},
    }.get(operator.lower())
    if join is None:
        raise UsageError(f"a filter joins others by {operator!r}; and, or and not are known")
    return join(list(parts))


def _known(operator: str, operators: Mapping[str, str]) -> str:
    if operator not in operators:
        raise UsageError(f"a filter compares by {operator!r}, which has no counterpart; known: {', '.join(operators)}")
    return operators[operator]


def _name(operator: Any) -> str:
    """The value of an enumeration's member, or a string as it is."""
    return str(getattr(operator, "value", operator))


def _plain(value: Any) -> Any:
    """LangChain's dates are objects: `{"date": "2024-05-31", "type": "date"}`."""
    if isinstance(value, Mapping):
        return value.get("date") or value.get("datetime")
    return value
