"""One finding: what was looked at, what is there, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """`fail`: it will not work, or not be right; `warn`: it will, with a drawback. Where all is well, no `advice`."""

    name: str
    status: Status
    found: str
    advice: str = ""


def verdict(name: str, found: str, *, fail: list[str] | None = None, warn: list[str] | None = None) -> Check:
    """The check of a list of problems, each said as its advice: the worst decides the status."""
    problems = [*(fail or []), *(warn or [])]
    return Check(name, "fail" if fail else "warn" if warn else "ok", found, "; ".join(problems))
