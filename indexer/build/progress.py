"""What a build has done so far, for who watches it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Counts of one pass, as they stand now. `tokens` counts those of passages encoded in this pass."""

    encoded: int = 0
    resumed: int = 0
    copied: int = 0
    recoded: int = 0
    kept: int = 0
    deleted: int = 0
    rejected: int = 0
    tokens: int = 0
    encoding_seconds: float = 0.0

    @property
    def done(self) -> int:
        """Passages that need no more encoding."""
        return self.encoded + self.resumed + self.copied + self.recoded
