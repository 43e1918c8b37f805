"""What is wrong with a published index."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexDamage:
    """One thing that is wrong: in which file (relative to the generation), and for which passage, if one alone."""

    file: str
    doc_id: str | None
    problem: str
