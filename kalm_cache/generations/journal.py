"""INDEX/JOURNAL: what an index folder must remember when generations are removed. Knows nothing of what is in them."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

JOURNAL = "JOURNAL"
_CHECKSUM = "checksum"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Journal:
    """The highest generation ever named, the lowest number never given, and the generation published last, if any.

    Names and numbers are never given twice, so that nothing that was kept under one can be taken for another.
    """

    generation: int = 0
    next_number: int = 0
    publishing: str | None = None

    def to_json(self) -> bytes:
        """The file's content: every field, and a checksum over them."""
        fields = asdict(self)
        return (json.dumps(fields | {_CHECKSUM: _digest(fields)}) + "\n").encode("utf-8")


def journal_problem(index: Path) -> str | None:
    """What is wrong with the file, if anything; a folder without one is as good."""
    try:
        raw = json.loads((index / JOURNAL).read_bytes())
        if raw.pop(_CHECKSUM, None) != _digest(raw):
            return "checksum mismatch"
        Journal(**raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as exc:
        return f"cannot be read: {exc}"
    return None


def read_journal(index: Path) -> Journal:
    """The journal; where it is not there or damaged, an empty one: the manifests that are there say the most of it."""
    problem = journal_problem(index)
    if problem is not None:
        logger.warning("%s: %s; going by the manifests, the next publication writes it anew", index / JOURNAL, problem)
        return Journal()
    try:
        raw = json.loads((index / JOURNAL).read_bytes())
    except FileNotFoundError:
        return Journal()
    return Journal(**{name: value for name, value in raw.items() if name != _CHECKSUM})


def _digest(fields: object) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
