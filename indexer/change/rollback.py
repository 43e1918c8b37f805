"""`CURRENT` back to an earlier generation. One rename; nothing is copied or removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import KalmCacheError, StoreError, UsageError
from kalm_cache.foreign_files import is_generation_name
from kalm_cache.generations.build_folders import recover
from kalm_cache.generations.current import current_name
from kalm_cache.generations.generation import Generation, open_current, open_generation, published_names
from kalm_cache.generations.publish import make_live
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import build_lock


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """From which generation to which, and how many passages that one shows."""

    index: str
    before: str
    generation: str
    passages: int


def roll_back(index: Path, to: str | None = None) -> RollbackReport:
    """Make another published generation live: the parent of the live one, or the one named `to`.

    Readers that have an index open go on with theirs; who opens it next gets the other one.

    Raises:
        IndexNotFoundError: nothing has been published here.
        UsageError: there is no such generation, or no parent.
        StoreError: the other generation is damaged; the live one stays.
    """
    if to is None or not published_names(index):
        current_name(index)  # first: a wrong folder should not be made
    with build_lock(index), disk_errors(index):
        recover(index)
        before = _live_name(index)
        target = _target(index, to)
        if target.name != before:
            make_live(index, target)
    return RollbackReport(str(index), before, target.name, target.manifest.counts.passages)


def _live_name(index: Path) -> str:
    """What `CURRENT` says, whatever that is: a damaged one is repaired by naming a generation."""
    try:
        return current_name(index)
    except KalmCacheError:
        return ""


def _target(index: Path, to: str | None) -> Generation:
    names = published_names(index)
    if to is None:
        live = open_current(index)
        to = live.manifest.parent
        if to is None:
            raise UsageError(f"{index}: generation {live.name} has no parent to go back to; published: {_shown(names)}")
    name = f"{int(to):06d}" if is_generation_name(to) else to
    if name not in names:
        raise UsageError(f"{index}: there is no generation {name} (any more); published: {_shown(names)}")
    generation = open_generation(index / "generations" / name)
    if generation.name != name:
        raise StoreError(f"{generation.folder}: its manifest is that of generation {generation.name}")
    return generation


def _shown(names: list[str]) -> str:
    return ", ".join(names)
