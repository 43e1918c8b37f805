"""What a corpus yields: lines that hold a passage, and lines that do not, with the reason. Knows nothing of formats."""

from __future__ import annotations

from dataclasses import dataclass

from kalm_cache.passage import Passage

MAX_RAW_CHARS = 200  # of a rejected line, as shown to the user


@dataclass(frozen=True, slots=True)
class CorpusLine:
    """A passage and where it was read: `file:line`, or `file:row` in Parquet, both from 1."""

    passage: Passage
    location: str


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line without a usable passage: where, why, the id if it could be read, and the line's first 200 characters."""

    location: str
    reason: str
    doc_id: str | None
    raw: str


class BadLineError(Exception):
    """A line holds no usable passage. Stays inside this package: each format's reader makes it a `RejectedLine`."""

    def __init__(self, reason: str, doc_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.doc_id = doc_id

    def rejected(self, location: str, raw: str) -> RejectedLine:
        """The value that reports this error; `raw` may be longer than what is kept of it."""
        return RejectedLine(location, self.reason, self.doc_id, raw[:MAX_RAW_CHARS])
