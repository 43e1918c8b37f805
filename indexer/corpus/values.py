"""What a corpus yields: lines that hold a passage, and lines that do not, with the reason. Knows nothing of formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kalm_cache.passage import Passage
from kalm_cache.text.lines import MAX_RAW_CHARS, BadLineError


@dataclass(frozen=True, slots=True)
class CorpusLine:
    """A passage and where it was read: `file:line`, or `file:row` in Parquet, both from 1.

    `unused`: the fields with content that are no part of it.
    `ordinal`: the one that a plan has reserved for it, `None` where it gets one when it is built.
    `metadata`: values by field, as they were read, or typed (see typed_metadata.py).
    """

    passage: Passage
    location: str
    unused: tuple[str, ...] = field(default=(), compare=False)
    ordinal: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line without a usable passage: where, why, the id if it could be read, and the line's first 200 characters."""

    location: str
    reason: str
    doc_id: str | None
    raw: str

    @classmethod
    def of(cls, problem: BadLineError, location: str, raw: str) -> RejectedLine:
        """The value that reports a problem; `raw` may be longer than what is kept of it."""
        return cls(location, problem.reason, problem.doc_id, raw[:MAX_RAW_CHARS])
