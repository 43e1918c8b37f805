"""A finished build -> the live generation, all or nothing at every step. Called under the build lock only."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kalm_cache.errors import IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.generations.current import current_name, write_current
from kalm_cache.generations.generation import (
    BUILDING,
    Generation,
    high_water_marks,
    open_generation,
    published_names,
    require_valid,
)
from kalm_cache.generations.journal import JOURNAL, Journal, read_journal
from kalm_cache.generations.manifest import MANIFEST, FileReceipt, Manifest
from kalm_cache.storage.durable import rename_durably, sync_tree, write_atomically


def receipts(folder: Path, known: dict[str, FileReceipt] | None = None) -> dict[str, FileReceipt]:
    """The receipt of every file below `folder`, by relative path; the manifest itself is left out.

    `known`: receipts of files that were linked from another generation, and are not read again.
    """
    by_name = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        name = path.relative_to(folder).as_posix()
        by_name[name] = (known or {}).get(name) or FileReceipt.of(path)
    return by_name


def name_for(index: Path, building: Path) -> str:
    """What a finished build will be called: as its folder, unless a later one was published meanwhile."""
    name, published = building.name.removesuffix(BUILDING), published_names(index)
    return name if not published or int(published[-1]) < int(name) else f"{high_water_marks(index).generation + 1:06d}"


def publish(index: Path, building: Path, manifest: Manifest) -> Generation:
    """Make a finished build the live generation: manifest, fsync, journal, rename, `CURRENT`.

    Each step is all or nothing; of a process that dies between the last two, `finish_publishing` does the rest.
    """
    write_atomically(building / MANIFEST, manifest.to_json())
    sync_tree(building)
    given = high_water_marks(index)
    journal = Journal(
        max(given.generation, int(manifest.generation)),
        max(given.next_ordinal, manifest.next_ordinal),
        manifest.generation,
    )
    write_atomically(index / JOURNAL, journal.to_json())
    published = building.with_name(manifest.generation)
    rename_durably(building, published)
    write_current(index, manifest.generation)
    return Generation(published, manifest, manifest.segments[0].name)


def finish_publishing(index: Path) -> str | None:
    """Finish a publication whose process died after the rename and before `CURRENT` was written; returns its name.

    The journal tells this from a rollback, after which `CURRENT` also names an earlier generation.
    """
    name = read_journal(index).publishing
    if name is None or name not in published_names(index):
        return None
    try:
        live: str | None = current_name(index)
    except IndexNotFoundError:
        live = None
    except StoreError:
        return None  # damaged: whether it named the parent is not known
    try:
        parent = open_generation(index / "generations" / name).manifest.parent
    except (StoreError, IndexMismatchError):
        return None
    if live == name or live != parent:
        return None
    write_current(index, name)
    return name


def make_live(index: Path, generation: Generation) -> None:
    """Point `CURRENT` at a published generation. Raises `StoreError` when a file of it is missing or was cut."""
    require_valid(generation)
    given = high_water_marks(index)
    write_atomically(index / JOURNAL, replace(given, publishing=None).to_json())  # first: this is no half publication
    write_current(index, generation.name)


def now() -> str:
    """For `created_at`, and nothing else: no decision hangs on a clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")
