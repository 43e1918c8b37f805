"""A query's candidates: which are scored by id, which by text, and their order. Knows no backend and no library.

A candidate with an id is scored by that id alone: no text is sent, no encoder runs. Texts are for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kalm_cache.arguments import check_doc_id
from kalm_cache.client import PairScore
from kalm_cache.client.calls import DocumentLike
from kalm_cache.errors import UsageError
from kalm_cache.passage import OnMissing
from kalm_cache.scoring.ranking import best_first

ID_FIELDS = ("id", "_id")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage to score: the id of a stored one, its text (or the fields that make it), or both."""

    doc_id: str | None
    text: DocumentLike | None


@dataclass(frozen=True, slots=True)
class StoredScores:
    """Scores of stored passages by id. An id that is not among them is not in the index, or is `damaged`."""

    by_id: Mapping[str, PairScore]
    damaged: Sequence[str] = ()

    def of(self, candidate: Candidate) -> PairScore | None:
        """The candidate's score, if its passage is stored and sound."""
        return None if candidate.doc_id is None else self.by_id.get(candidate.doc_id)


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate by its position (`index`). `cache`: its states were stored (`hit`) or computed now (`encoded`)."""

    index: int
    score: float
    margin: float
    cache: Literal["hit", "encoded"]


def stored_ids(candidates: Sequence[Candidate], on_missing: OnMissing) -> list[str]:
    """The ids to score, each once. Raises `UsageError` where a candidate has none under `error`."""
    nameless = [i for i, candidate in enumerate(candidates) if candidate.doc_id is None]
    if nameless and on_missing == "error":
        raise UsageError(
            f"{len(nameless)} of {len(candidates)} documents have no id, the first at position {nameless[0]}; "
            "name the metadata field that holds it (id_field), or allow on_missing='encode' or 'skip'"
        )
    return list(dict.fromkeys(candidate.doc_id for candidate in candidates if candidate.doc_id is not None))


def texts_to_encode(
    candidates: Sequence[Candidate], stored: StoredScores, on_missing: OnMissing
) -> dict[int, DocumentLike]:
    """Texts by position of the candidates that have no stored score, under `encode`; else none.

    Raises:
        UsageError: such a candidate has no text.
    """
    if on_missing != "encode":
        if stored.damaged:
            logger.warning("a ranking does without damaged passages: %s", ", ".join(map(repr, stored.damaged)))
        return {}
    return {i: _text(i, candidate) for i, candidate in enumerate(candidates) if stored.of(candidate) is None}


def ranked(
    candidates: Sequence[Candidate], stored: StoredScores, encoded: Mapping[int, PairScore]
) -> list[ScoredCandidate]:
    """The candidates that have a score, by falling margin; equal margins keep their order.

    Args:
        candidates: all of them.
        stored: scores by id.
        encoded: scores by position.
    """
    scored = [
        ScoredCandidate(i, score.score, score.margin, "encoded" if i in encoded else "hit")
        for i, candidate in enumerate(candidates)
        if (score := encoded.get(i) or stored.of(candidate)) is not None
    ]
    return [scored[i] for i in best_first([candidate.margin for candidate in scored], None)]


def id_of(metadata: Mapping[str, Any], library_id: str | None, field: str | None) -> str | None:
    """The id under which the index may hold a library's document.

    Args:
        metadata: the document's.
        library_id: the id that the library itself gives to the document.
        field: the key of the metadata that holds the id; `None` = `id`, then `_id`, then `library_id`.

    Raises:
        UsageError: the metadata hold something there that is no id.
    """
    for name in ID_FIELDS if field is None else (field,):
        value = metadata.get(name)
        if value is not None and not (isinstance(value, str) and value == ""):
            return check_doc_id(value, f"metadata[{name!r}]")
    return (library_id or None) if field is None else None


def with_fields(text: str, metadata: Mapping[str, Any], names: Iterable[str]) -> DocumentLike:
    """A library's document as it is encoded: its text, with those of the named fields that its metadata have.

    The backend's passage template puts them together.
    """
    fields = {name: metadata[name] for name in names if name in metadata}
    return {**fields, "text": text} if fields else text


def _text(i: int, candidate: Candidate) -> DocumentLike:
    if candidate.text is None:
        raise UsageError(f"document {i} (id {candidate.doc_id!r}) is not stored and has no text to encode")
    return candidate.text
