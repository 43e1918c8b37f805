"""What came back from a request: a reply, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; the names of `headers` are lower-case. `url` is where it came from, for messages."""

    status: int
    content: bytes
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoReply:
    """A request that nothing answered, and why. `timed_out`: the time was up; else there was no connection."""

    reason: str
    url: str
    timed_out: bool
