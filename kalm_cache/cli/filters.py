"""`--filter` and `--fields`: JSON and names of a command line -> what an index takes. Knows no index."""

from __future__ import annotations

import json
from typing import Any

from kalm_cache.errors import UsageError


def parsed_filter(given: str | None) -> dict[str, Any] | None:
    """The object of `--filter`. Raises `UsageError` where it is no JSON object."""
    if given is None:
        return None
    try:
        value = json.loads(given)
    except (ValueError, RecursionError) as exc:
        raise UsageError(f'--filter is not JSON: {exc}; write it as \'{{"lang": "de"}}\'') from exc
    if not isinstance(value, dict):
        raise UsageError(f'--filter is {given!r}; write an object as \'{{"lang": "de"}}\'')
    return value


def parsed_fields(given: str | None) -> list[str]:
    """The names of `--fields`; `all` becomes the `*` that stands for each. Raises `UsageError` for an empty name."""
    names = [name.strip() for name in given.split(",")] if given is not None else []
    if not all(names):
        raise UsageError(f"--fields is {given!r}; write names with commas, or all")
    return ["*"] if names == ["all"] else names
