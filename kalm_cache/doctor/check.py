"""What one check reports. Knows nothing of what is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a check saw, and the problems in it, each worded as what to do about it.

    Attributes:
        found: what is there.
        fail: problems for which it will not work, or not be right.
        warn: problems with which it works, but slower or at a risk.
    """

    found: str
    fail: Sequence[str] = ()
    warn: Sequence[str] = ()

    @property
    def status(self) -> Status:
        """The worst problem decides."""
        return "fail" if self.fail else "warn" if self.warn else "ok"

    @property
    def advice(self) -> str:
        """All problems, the worst first; empty where there are none."""
        return "; ".join([*self.fail, *self.warn])


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of a named check, as `kalm-cache doctor --json` prints it. `advice` is empty where all is well."""

    name: str
    status: Status
    found: str
    advice: str = ""
