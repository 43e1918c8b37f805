"""INDEX/JOURNAL: what an index folder must remember when generations are removed. Knows nothing of what is in them."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kalm_cache.foreign_files import STRICT, Count, GenerationName, checked_fields, read_json_object
from kalm_cache.storage.checked_json import pack_checked, unpack_checked

JOURNAL = "JOURNAL"
HighestName = Annotated[int, Field(ge=0, lt=10**15)]  # those after it are names, too
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Journal:
    """The highest generation ever named, the lowest ordinal never given, and the generation published last, if any.

    Names and ordinals are never given twice, so that nothing that was kept under one can be taken for another.
    """

    generation: HighestName = 0
    next_ordinal: Count = 0
    publishing: GenerationName | None = None
    __pydantic_config__ = STRICT

    def to_json(self) -> bytes:
        """The file's content: every field, and a checksum over them."""
        return pack_checked(asdict(self), indent=None)


def journal_problem(index: Path) -> str | None:
    """What is wrong with the file, if anything; a folder without one is valid, too."""
    journal = _read(index)
    return journal if isinstance(journal, str) else None


def read_journal(index: Path) -> Journal:
    """The journal; where it is not there or damaged, an empty one: the manifests that are there hold most of it."""
    journal = _read(index)
    if isinstance(journal, Journal):
        return journal
    logger.warning("%s: %s; going by the manifests, the next publication writes it anew", index / JOURNAL, journal)
    return Journal()


def _read(index: Path) -> Journal | str:
    """The journal, or what is wrong with it."""
    try:
        fields = unpack_checked(read_json_object(index / JOURNAL))
        return "checksum mismatch" if fields is None else checked_fields(Journal, fields)
    except FileNotFoundError:
        return Journal()
    except (OSError, ValueError) as exc:
        return f"cannot be read: {exc}"
