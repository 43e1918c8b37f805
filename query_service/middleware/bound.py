"""The filter that the key of a request is bound to, for whoever answers it. Knows nothing of keys or indexes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Bound = Mapping[str, Any] | None  # `None`: everything is seen
# of requests without a key where some keys are bound: they see nothing, and are told no number
HIDDEN: Mapping[str, Any] = {"$not": {}}
_current: ContextVar[Bound] = ContextVar("bound", default=None)


def bound_filter() -> Bound:
    """The filter of the request that this code runs for; `None` where its key sees everything, or outside of one."""
    return _current.get()


@contextmanager
def bound_to(filter: Bound) -> Iterator[None]:
    """Have a request's filter for the length of the block."""
    token = _current.set(filter)
    try:
        yield
    finally:
        _current.reset(token)
