"""What is wrong with a request body, in the words of the API. Knows nothing of HTTP.

Where a field takes one of several types, pydantic tells of each, under names of its own, as
`documents.0.function-after[…]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pydantic import BaseModel

from query_service.api import requests

SHOWN_PROBLEMS = 5
SHOWN_NAME_CHARS = 100
# what pydantic calls a member of a union: a class, or its schema. No field has such a name
_MEMBER = re.compile(r"[A-Z]\w*|.*[\[\](){}].*|constrained-\w+|str|int|float|bool|dict|list|none", re.DOTALL)
_EXPECTED = {
    "string_type": "a text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "none_required": "null",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


@dataclass(frozen=True, slots=True)
class _Problem:
    """One thing that is wrong: where, pydantic's name of its kind, and its message."""

    where: tuple[str | int, ...]
    kind: str
    message: str

    @property
    def plain(self) -> tuple[str | int, ...]:
        """The way to the first field that takes several types, or to the end."""
        return self.where[: self._depth()]

    @property
    def member(self) -> str | None:
        """The member of the union at the end of `plain`; `None` where there is no union."""
        depth = self._depth()
        return str(self.where[depth]) if depth < len(self.where) else None

    @property
    def is_of_another_type(self) -> bool:
        """Whether the value is not of the member's type at all."""
        return self._depth() + 1 == len(self.where) and self.kind in _EXPECTED

    def without_member(self) -> _Problem:
        """As if the field took this member alone."""
        return replace(self, where=(*self.plain, *self.where[self._depth() + 1 :]))

    def _depth(self) -> int:
        last = len(self.where) - (self.kind == "extra_forbidden")  # that is a name that the client chose
        return next((i for i, part in enumerate(self.where[:last]) if _is_member(part)), len(self.where))


def describe_problems(problems: Sequence[Mapping[str, Any]]) -> str:
    """`field: what is wrong; …`. Never the value itself: it may be large, or no valid Unicode.

    Args:
        problems: as pydantic's `errors()` lists them, each under `("body", …)`.
    """
    told = _lines([_Problem(tuple(problem["loc"][1:]), problem["type"], problem["msg"]) for problem in problems])
    more = len(told) - SHOWN_PROBLEMS
    return "; ".join([*told[:SHOWN_PROBLEMS], f"and {more} more"] if more > 0 else told)


def plain_path(where: Sequence[str | int]) -> list[str | int]:
    """The way to a field as the client knows it."""
    return [part for part in where if not _is_member(part)]


def _lines(problems: Sequence[_Problem]) -> list[str]:
    lines: list[str] = []
    for plain, group in groupby(problems, key=lambda problem: problem.plain):
        same = list(group)
        unions = [problem for problem in same if problem.member is not None]
        lines += [_line(plain, _message(problem)) for problem in same if problem.member is None]
        # where the value is of one member's type, what the others say of it is of no use
        meant = [problem.without_member() for problem in unions if not problem.is_of_another_type]
        if meant:
            lines += _lines(meant)
        elif unions:
            wanted = dict.fromkeys(_expected(problem) for problem in unions)
            lines.append(_line(plain, f"expected {' or '.join(wanted)}"))
    return lines


def _expected(problem: _Problem) -> str:
    model = vars(requests).get(problem.member or "")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return _EXPECTED[problem.kind]
    fields = model.model_fields.items()
    return "{" + ", ".join(name if field.is_required() else f"{name}?" for name, field in fields) + "}"


def _message(problem: _Problem) -> str:
    return "expected an object" if problem.kind.startswith("model_") else problem.message  # it names the class


def _line(where: Sequence[str | int], message: str) -> str:
    return f"{'.'.join(str(part)[:SHOWN_NAME_CHARS] for part in where)}: {message}" if where else message


def _is_member(part: str | int) -> bool:
    return isinstance(part, str) and _MEMBER.fullmatch(part) is not None
