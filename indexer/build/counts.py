"""How far a build is, for who watches it: counts only. What a resumed build goes by is in resume_log.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

STAGES = ("plan", "encode", "finish", "commit", "seal", "first stage")


def _stages() -> dict[str, Any]:
    return dict.fromkeys(STAGES, 0)  # all keys from the beginning: others may look while a build counts


@dataclass(slots=True)
class BuildCounts:
    """Counts of one pass, as they stand now, in passages; `rejected` in lines.

    Of what the corpus has: `encoded` now, `resumed` (an interrupted run had encoded it), `copied` or `recoded` from a
    sealed segment. `kept`: what the corpus does not have, and stays; it is in one of these, too. `deleted`: what an
    interrupted run had encoded and the corpus no longer has. `tokens` and `encoding_seconds` are of `encoded`.

    `stage_seconds`: of "plan" (reading, looking up, tokenising), "encode", "finish" (off the device, codec, embedding),
    "commit", "seal" and "first stage"; those before "seal" run side by side. `stage_bytes`: what each made: texts,
    states, payloads and vectors, and the files' bytes on disk.
    """

    encoded: int = 0
    resumed: int = 0
    copied: int = 0
    recoded: int = 0
    kept: int = 0
    deleted: int = 0
    rejected: int = 0
    tokens: int = 0
    encoding_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=_stages)
    stage_bytes: dict[str, int] = field(default_factory=_stages)

    @staticmethod
    def total(parts: Iterable[BuildCounts]) -> BuildCounts:
        """The counts of several builds together."""
        values = [[getattr(part, field.name) for field in fields(BuildCounts)] for part in parts]
        return BuildCounts(*(reduce(_added, column) for column in zip(*values, strict=True)))

    @property
    def done(self) -> int:
        """Passages that need no more encoding."""
        return self.encoded + self.resumed + self.copied + self.recoded


def _added(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {stage: first[stage] + second[stage] for stage in STAGES}
    return first + second
