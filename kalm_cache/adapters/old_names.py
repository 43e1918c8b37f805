"""Arguments that sentence-transformers renamed or dropped, and what it says of them. Knows nothing of models."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from kalm_cache.errors import UsageError

logger = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the same one once in a process."""
    logger.warning(message)


def with_old_names(
    renamed: Mapping[str, str], dropped: Collection[str] = (), positional: Collection[str] = ()
) -> Callable[[_F], _F]:
    """Let a method take the arguments that earlier versions took, with a warning.

    Args:
        renamed: old name -> the name it has now, which wins where both are given.
        dropped: arguments without an effect.
        positional: those that earlier versions took by position behind the first one.
    """

    def decorate(method: _F) -> _F:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **options: Any) -> Any:
            if positional:
                args = _by_name(args, list(positional), options)
            for old in renamed.keys() & options.keys():
                warn_once(f"the argument {old} was renamed: use {renamed[old]}")
                options.setdefault(renamed[old], options.pop(old))
            for name in set(dropped) & options.keys():
                warn_once(f"the argument {name} of {method.__name__} has no effect")
                del options[name]
            return method(self, *args, **options)

        return cast(_F, call)

    return decorate


def _by_name(args: tuple[Any, ...], names: list[str], options: dict[str, Any]) -> tuple[Any, ...]:
    if len(args) > 1 + len(names):
        raise UsageError(f"{len(args)} arguments by position; expected a model and, by their names, {', '.join(names)}")
    for name, value in zip(names, args[1:], strict=False):
        warn_once(f"the argument {name} came by its position: use {name}={value!r}")
        options.setdefault(name, value)
    return args[:1]
