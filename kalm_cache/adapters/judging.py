"""Candidates -> what has to be asked -> candidates by falling margin. Knows nothing of who answers, or of libraries.

A candidate with an id is asked for by that id alone: no text is sent, no encoder runs. Texts are for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kalm_cache.errors import UsageError
from kalm_cache.scoring.ranking import best_first

OnMissing = Literal["error", "skip", "encode"]
ID_FIELDS = ("id", "_id")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage to judge: the id of a stored one, its text, or both."""

    doc_id: str | None
    text: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` = P(yes), `margin` = yes_logit − no_logit."""

    score: float
    margin: float


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate, by its position, and whether its states were stored (`hit`) or computed for this (`encoded`)."""

    index: int
    score: float
    margin: float
    cache: Literal["hit", "encoded"]


@dataclass(frozen=True, slots=True)
class AskStored:
    """Judge stored passages; `strict`: one that is not held is an error."""

    ids: list[str]
    strict: bool


@dataclass(frozen=True, slots=True)
class AskTexts:
    """Judge texts."""

    texts: list[str]


@dataclass(frozen=True, slots=True)
class Told:
    """Verdicts by id. What is not among them is not held, or `damaged`."""

    verdicts: Mapping[str, Verdict]
    damaged: Sequence[str] = ()


Judging = Generator[AskStored | AskTexts, Any, list[Judged]]


def judging(candidates: Sequence[Candidate], on_missing: OnMissing) -> Judging:
    """Yields what to ask, is sent `Told` or a list of verdicts, and returns the candidates, best first.

    Those that are left out: not held or without an id under `skip`, and damaged ones unless under `encode`.

    Raises:
        UsageError: a candidate without an id under `error`, or without a text where it must be encoded.
    """
    if on_missing == "error":
        _require_ids(candidates)
    found: dict[int, Judged] = {}
    ids = [one.doc_id for one in candidates if one.doc_id is not None]
    if ids:
        told: Told = yield AskStored(list(dict.fromkeys(ids)), strict=on_missing == "error")
        for i, one in enumerate(candidates):
            if one.doc_id is not None and one.doc_id in told.verdicts:
                verdict = told.verdicts[one.doc_id]
                found[i] = Judged(i, verdict.score, verdict.margin, "hit")
        if told.damaged and on_missing != "encode":
            logger.warning("a ranking does without damaged passages: %s", ", ".join(map(repr, told.damaged)))
    rest = [i for i in range(len(candidates)) if i not in found] if on_missing == "encode" else []
    if rest:
        verdicts: list[Verdict] = yield AskTexts([_text(candidates, i) for i in rest])
        for i, verdict in zip(rest, verdicts, strict=True):
            found[i] = Judged(i, verdict.score, verdict.margin, "encoded")
    positions = sorted(found)
    return [found[positions[place]] for place in best_first([found[i].margin for i in positions], None)]


def id_of(metadata: Mapping[str, Any], own: str | None, field: str | None) -> str | None:
    """The id under which the index may hold a library's document.

    Args:
        metadata: the document's.
        own: the id that the library itself gives to the document.
        field: the key of the metadata that holds the id; `None` = `id`, then `_id`, then the document's own.
    """
    for name in ID_FIELDS if field is None else (field,):
        value = metadata.get(name)
        if isinstance(value, str | int) and value != "":
            return str(value)
    return (own or None) if field is None else None


def _require_ids(candidates: Sequence[Candidate]) -> None:
    nameless = [i for i, one in enumerate(candidates) if one.doc_id is None]
    if nameless:
        raise UsageError(
            f"{len(nameless)} of {len(candidates)} documents have no id, the first at position {nameless[0]}; "
            "name the metadata field that holds it (id_field), or allow on_missing='encode' or 'skip'"
        )


def _text(candidates: Sequence[Candidate], i: int) -> str:
    text = candidates[i].text
    if text is None:
        raise UsageError(f"document {i} (id {candidates[i].doc_id!r}) is not stored and has no text to encode")
    return text
