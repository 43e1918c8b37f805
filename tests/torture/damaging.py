"""Draws damages over every file of an index, and runs them through children; see flipping.py."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.torture.client import Worker
from tests.torture.copying import copy_index
from tests.torture.flipping import IndexDamage
from tests.torture.killing import result_of

EXPECTED, CHECK = "tests.torture.flipping:expected", "tests.torture.flipping:check"
BATCH = 50  # damages a child


@dataclass(slots=True)
class DamageTally:
    """Counts of a sweep: `detected` by verify, or `harmless`; `deaths` of processes that asked; `problems`."""

    points: int = 0
    detected: int = 0
    harmless: int = 0
    deaths: int = 0
    files: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    queries: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def draw(index: Path, count: int, seed: int) -> list[IndexDamage]:
    """Damages at random: half of them in files by size, half in any file alike; one in eight is no bit flip."""
    pick = random.Random(seed)
    files = sorted(path for path in index.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(index)): path.stat().st_size for path in files}
    return [_draw_one(pick, sizes) for _ in range(count)]


def _draw_one(pick: random.Random, sizes: dict[str, int]) -> IndexDamage:
    names = list(sizes)
    name = pick.choice(names) if pick.random() < 0.5 else pick.choices(names, [sizes[one] for one in names])[0]
    chance = pick.random()
    if sizes[name] == 0 or chance < 0.01:
        return IndexDamage("gone", name)
    at = pick.randrange(sizes[name])
    if chance < 0.1:
        return IndexDamage("cut", name, at)
    if chance < 0.125:
        return IndexDamage("zero", name, at // 512 * 512)
    return IndexDamage("flip", name, at, pick.randrange(8))


def batches(damages: Sequence[IndexDamage], size: int = BATCH) -> Iterator[Sequence[IndexDamage]]:
    """Slices, one for each child."""
    for start in range(0, len(damages), size):
        yield damages[start : start + size]


def damage(
    worker: Worker, folder: Path, start: Path, valid: dict[str, Any], some: Sequence[IndexDamage], tally: DamageTally
) -> None:
    """Run some damages in children: a new one, on a new copy, behind each that ended one."""
    done = 0
    while done < len(some):
        shutil.rmtree(folder / "index", ignore_errors=True)
        index = copy_index(start, folder / "index")
        results = folder / "results.jsonl"
        results.unlink(missing_ok=True)
        rest = [asdict(one) for one in some[done:]]
        outcome = worker.run(CHECK, index=index, damages=rest, valid=valid, results=str(results))
        lines = results.read_text().splitlines() if results.exists() else []
        for line in lines:
            _count(json.loads(line), tally)
        done += len(lines)
        if outcome.problem is not None and done < len(some):
            _count_death(some[done], outcome.problem, tally)
            done += 1


def _count(found: dict[str, Any], tally: DamageTally) -> None:
    said = IndexDamage(**found["damage"])
    _count_point(said, tally)
    tally.detected += found["named"]
    tally.harmless += not found["named"] and not found["problems"]
    tally.queries[found["query"]] += 1
    tally.problems += [f"{said}: {problem}" for problem in found["problems"]]


def _count_death(one: IndexDamage, problem: str, tally: DamageTally) -> None:
    _count_point(one, tally)
    tally.deaths += 1
    tally.problems.append(f"{one}: the process that looked was {problem}")


def _count_point(one: IndexDamage, tally: DamageTally) -> None:
    tally.points += 1
    tally.files[Path(one.file).name] += 1
    tally.kinds[one.kind] += 1


def whole_index(worker: Worker, index: Path) -> dict[str, Any]:
    """What an index that nothing happened to answers."""
    answers: dict[str, Any] = result_of(worker.run(EXPECTED, index=index))
    return answers
