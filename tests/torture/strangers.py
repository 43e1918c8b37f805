"""Draws examples of sending.py over workers, and counts what commands made of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.client import Worker

CHECK = "tests.torture.sending:check"
BATCH = 25


@dataclass(slots=True)
class StrangerTally:
    """Examples, files and exit codes by command; `problems` with the seed that shows each again."""

    points: int = 0
    files: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def batches_of_seeds(seed: int, count: int) -> list[list[int]]:
    """Seeds of examples, some for each child."""
    return [list(range(seed + at, seed + min(at + BATCH, count))) for at in range(0, count, BATCH)]


def receive(
    worker: Worker, folder: Path, start: Path, models: Path, seeds: Sequence[int], tally: StrangerTally, *, whole: bool
) -> None:
    """Run some examples in a child of a worker."""
    results = folder / "results.jsonl"
    outcome = worker.run(
        CHECK,
        start=start,
        models=models,
        folder=folder / "sent",
        seeds=list(seeds),
        results=str(results),
        whole=whole,
    )
    for line in results.read_text().splitlines() if results.exists() else ():
        found = json.loads(line)
        tally.points += 1
        tally.files[found["file"]] += 1
        tally.exits.update(f"{command} {code}" for command, code in found["exits"].items())
        shown = f"seed {found['seed']}, {found['file']}{', sealed' if found['sealed'] else ''}"
        tally.problems += [f"{shown}: {problem}" for problem in found["problems"]]
    if outcome.problem is not None:
        tally.problems.append(f"seeds from {seeds[0]}: {outcome.problem}")
