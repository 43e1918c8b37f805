"""Whose dialect a request is in, told by its path and its fields, and what each dialect has its own way: two tables.

| dialect  | path              | with one of the fields             | its own way                              |
|----------|-------------------|------------------------------------|------------------------------------------|
| infinity | /infinity/rerank  |                                    | a 422 has a list of problems             |
| kalm     | every path        | `ids`, or an option of this service |                                         |
| tei      | /rerank           | `texts`                            | `error` is a string; without texts a 400 |
| vllm     | every path        | an option of vLLM                  | results hold documents unless told       |
| vllm     | /rerank           | `documents`                        | likewise                                 |
| vllm     | /score, /v1/score | two columns                        | no documents are a 400                   |
| cohere-1 | /v1/rerank        |                                    | `meta` has version and search units      |
| cohere-2 | /v2/rerank        |                                    | likewise                                 |
| kalm     | whatever is left  |                                    |                                          |

Knows nothing of how answers are made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from starlette.types import Scope

from query_service.middleware.paths import route_path

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
SCORE_PATHS = ("/score", "/v1/score")
Dialect = Literal["kalm", "vllm", "tei", "infinity", "cohere-1", "cohere-2"]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A request is in `dialect` if its path is one of `paths` and it has one of `fields`; none named = any will do."""

    dialect: Dialect
    paths: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()


_RULES = (  # the first that fits
    _Rule("infinity", ("/infinity/rerank",)),
    _Rule("kalm", (), frozenset({"ids", "chunk_size", "on_missing", "return_margin", "timeout_ms", "top_k"})),
    _Rule("tei", ("/rerank",), frozenset({"texts"})),
    _Rule("vllm", (), frozenset({"activation", "truncate_prompt_tokens", "truncation_side", "use_activation"})),
    _Rule("vllm", ("/rerank",), frozenset({"documents"})),
    _Rule("vllm", SCORE_PATHS, frozenset({"queries", "text_1", "data_1"})),
    _Rule("cohere-1", ("/v1/rerank",)),
    _Rule("cohere-2", ("/v2/rerank",)),
    _Rule("kalm"),
)


def dialect_of(path: str, fields: Collection[str]) -> Dialect:
    """The dialect of a request to `path` with these fields, those that are null not among them."""
    return next(
        rule.dialect
        for rule in _RULES
        if (not rule.paths or path in rule.paths) and (not rule.fields or not rule.fields.isdisjoint(fields))
    )


def note_dialect(scope: Scope, fields: Collection[str]) -> None:
    """Find a request's dialect and note it, for its answer and for the error that it may end in."""
    scope.setdefault("state", {})["dialect"] = dialect_of(route_path(scope), fields)


def noted_dialect(scope: Scope) -> Dialect:
    """The dialect that was noted; as the path alone tells it where the request's fields were never read."""
    dialect: Dialect = scope.get("state", {}).get("dialect") or dialect_of(route_path(scope), ())
    return dialect
