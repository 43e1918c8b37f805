"""What came of the answers of a soak: each compared with what its generation answers by itself."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from threading import Lock

from benchmarks.soak.hostile import is_on

TOLERANCE = 1e-4

Expected = list[dict[str, float]]  # of each query: id -> margin


@dataclass(slots=True)
class Tally:
    """What came of the answers. Those of a generation whose own answers are not known yet wait."""

    checked: Counter[str] = field(default_factory=Counter)  # by generation
    statuses: Counter[int] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    took_ms_attacked: list[float] = field(default_factory=list)
    attacks: Counter[str] = field(default_factory=Counter)  # what the hostile client did, and the status
    refusals: frozenset[int] = frozenset()  # statuses that are no errors
    hostile_since: float | None = None
    problems: list[str] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)
    waiting: list[tuple[int, str, list[tuple[str, float]]]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def add(self, number: int, status: int, took_ms: float, said: str, results: list[tuple[str, float]]) -> None:
        """One answer; `said`: its index_version, or the error's text."""
        with self.lock:
            self.statuses[status] += 1
            attacked = self.hostile_since is not None and is_on(time.monotonic() - self.hostile_since)
            (self.took_ms_attacked if attacked else self.took_ms).append(took_ms)
            if status in self.refusals:
                return
            if status != 200:
                self.problems.append(f"status {status}: {said}")
            elif said in self.expected:
                self._check(number, said, results)
            else:
                self.waiting.append((number, said, results))

    def publish(self, version: str, expected: Expected) -> None:
        """A generation's own answers."""
        with self.lock:
            self.expected[version] = expected
            waiting, self.waiting = self.waiting, []
            for number, said, results in waiting:
                if said == version:
                    self._check(number, said, results)
                else:
                    self.waiting.append((number, said, results))

    def _check(self, number: int, version: str, results: list[tuple[str, float]]) -> None:
        self.checked[version] += 1
        wanted, found = self.expected[version][number], dict(results)
        if found.keys() != wanted.keys():
            self.problems.append(f"query {number} of {version}: ids {sorted(found.keys() ^ wanted.keys())}")
        elif (error := max(abs(found[one] - wanted[one]) for one in wanted)) > TOLERANCE:
            self.problems.append(f"query {number} of {version}: margins differ by {error:.2g}")
