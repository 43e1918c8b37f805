"""Scenarios: a state to begin with, and an operation that is disturbed there. Their steps run in worker's children."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.integrity.verify import verify_index
from kalm_cache.errors import IndexNotFoundError
from tests.torture.content import content
from tests.torture.operations import (
    Report,
    add,
    add_eighth,
    add_seven,
    add_unfolded,
    build,
    build_changed,
    build_unsynced,
    damage,
    delete,
    fold,
    fold_everything,
    gc,
    rebuild_in_place,
    recode,
    reindex,
    repair,
    rollback,
)

Operation = Callable[[Path], Report]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`before` makes the state that `act` starts from. `act` may be run again until it has finished.

    `killed`: an operation that was begun after `before` and killed there, when it had made `killed_at` of its calls.
    `renumbers`: what its unfinished builds had encoded is dropped or folded, so that it may get higher numbers when it
    is run again: the journal gives none twice.
    """

    name: str
    before: tuple[Operation, ...]
    act: Operation
    killed: Operation | None = None
    killed_at: float = 0.0
    renumbers: bool = False


SABOTAGED = {
    scenario.name: scenario
    for scenario in (
        Scenario("build without syncing", (), build_unsynced),
        Scenario("rebuild in place", (build,), rebuild_in_place),
    )
}
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("build", (), build),
        Scenario("rebuild", (build,), build_changed),
        Scenario("reindex", (build,), reindex),
        Scenario("reindex of deltas", (build, delete, add), reindex),
        Scenario("recode", (build,), recode),
        Scenario("add", (build,), add),
        Scenario("add to deltas", (build, delete), add),
        Scenario("delete", (build,), delete),
        Scenario("delete from deltas", (build, add), delete),
        Scenario("add that folds", (build, add_seven), add_eighth, renumbers=True),
        Scenario("fold", (build, delete, add_unfolded), fold),
        Scenario("fold of everything", (build, add, delete), fold_everything),
        Scenario("fold after a kill", (build, add_unfolded), fold, fold, 0.6),
        Scenario("gc", (build, reindex), gc),
        Scenario("gc of deleted", (build, add, delete), gc),
        Scenario("rollback", (build, reindex), rollback),
        Scenario("repair", (build, damage), repair, renumbers=True),
        Scenario("build after a kill", (), build, build, 0.6),
        Scenario("delete after a kill", (build, add), delete, delete, 0.6),
        Scenario("add after a killed delete", (build,), add, delete, 0.6),
        Scenario("gc after a kill", (build, delete), gc, gc, 0.5),
        Scenario("gc after a killed gc's end", (build, reindex), gc, gc, 0.5),
        Scenario("gc after a killed reindex", (build, delete), gc, reindex, 0.6),
        Scenario("delete after a killed publication", (build,), delete, add, 0.99),
    )
}


def find(name: str) -> Scenario:
    """A scenario by its name, the sabotaged ones included: those are to show that harm is noticed."""
    return (SCENARIOS | SABOTAGED)[name]


def prepare(name: str, index: Path) -> None:
    """Make the state that a scenario begins with."""
    for operation in find(name).before:
        operation(index)


def begin(name: str, index: Path) -> Report:
    """The operation that is killed before the scenario begins."""
    killed = find(name).killed
    return {} if killed is None else killed(index)


def act(name: str, index: Path) -> Report:
    """The operation itself."""
    return find(name).act(index)


def look(index: Path) -> dict[str, Any]:
    """What the index holds now, and what verify says of it."""
    return {"content": content(index), "damage": _damage(index), "strays": _strays(index)}


def recover(name: str, index: Path) -> dict[str, Any]:
    """What a disturbed index holds, and what it holds when the operation has been run again to its end."""
    found = look(index)
    act(name, index)
    return {"found": found, "final": look(index)}


def _damage(index: Path) -> list[str]:
    try:
        return [f"{one.file}, {one.doc_id}: {one.problem}" for one in verify_index(index).damaged]
    except IndexNotFoundError:
        return []


def _strays(index: Path) -> list[str]:
    """What only an unfinished operation may leave behind."""
    suffixes = (".tmp", ".building", ".sealing", ".earlier", "-lock")
    found = (path for path in index.rglob("*") if path.name.endswith(suffixes) or "working" in path.name)
    return sorted(str(path.relative_to(index)) for path in found)
