"""Passages of a request, and how they are scored. Knows nothing of who scores them."""

from __future__ import annotations

from dataclasses import dataclass

from kalm_cache.model.prompts import CutSide
from kalm_cache.passage import OnMissing


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage by its id; with a `text`, the index must hold this very text, or else it counts as missing."""

    doc_id: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class RawPassage:
    """A passage that came with the request, as text."""

    text: str


AnyPassage = StoredPassage | RawPassage


@dataclass(frozen=True, slots=True)
class ScoringOptions:
    """How pairs are scored. `truncate` false: what would be cut is an error.

    `max_tokens` (of a passage) and `cut_side` hold for stored passages, too: their states serve where they agree.
    `cache` false: texts are private, and neither looked up nor kept.
    """

    chunk_size: int | None = None
    on_missing: OnMissing = "error"
    truncate: bool = True
    max_tokens: int | None = None
    cut_side: CutSide = "right"
    cache: bool = True
