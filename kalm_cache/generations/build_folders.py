"""Folders of unfinished builds: begun, taken up again after a death, or dropped. Called under the build lock only.

What a build was started as stands in its `build.json`, written before anything else is. A build that holds encoded work
is finished by the same command, and stands in the way of others that would encode; one that holds none is dropped by
whichever command comes next. What a build has encoded so far, its resume log knows
(indexer/build/unfinished/resume_log.py).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import StoreError
from kalm_cache.foreign_files import checked_fields, read_json_object
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.fingerprint import Fingerprint, require_equal
from kalm_cache.generations.generation import BUILDING, REMOVING, Generation, high_water_marks, open_current
from kalm_cache.generations.journal import JOURNAL
from kalm_cache.generations.publish import finish_publishing
from kalm_cache.generations.sharding import Sharding
from kalm_cache.storage.durable import disk_errors, rename_durably, write_atomically
from kalm_cache.storage.locks import build_lock

if TYPE_CHECKING:
    from kalm_cache.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)
BUILD_FILE = "build.json"
SALVAGE = ".salvage"  # suffix of what repair has found in damaged segments
ENCODING = ("index", "reindex", "add")  # operations whose unfinished builds are worth finishing


def unfinished_builds(index: Path) -> list[Path]:
    """The folders of builds that were begun, oldest first."""
    return sorted((index / "generations").glob(f"*{BUILDING}"))


@contextmanager
def locked_live_generation(index: Path) -> Iterator[Generation]:
    """The live generation, under the build lock, once everything that a dead process left is cleared away.

    Raises:
        IndexNotFoundError: nothing has been published in the folder, which is left as it is.
        IndexLockedError: another process is changing the index.
        StoreError: the live generation is damaged, or while it is changed, the disk is full or cannot be written.
    """
    open_current(index)  # before the lock, whose file would make a wrong folder
    with build_lock(index), disk_errors(index):
        recover(index)
        yield open_current(index)


def recover(index: Path) -> None:
    """Finish a publication that a process had all but done when it died, and drop what holds no encoded work."""
    for path in (index / CURRENT, index / JOURNAL):
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
    finished = finish_publishing(index)
    if finished is not None:
        logger.info("generation %s had been built and is live now", finished)
    for suffix in (REMOVING, SALVAGE):
        for folder in (index / "generations").glob(f"*{suffix}"):
            shutil.rmtree(folder)
    for building in unfinished_builds(index):
        if not _has_begun(building) or _read(building).get("operation", "index") not in ENCODING:
            drop(building)


def drop(building: Path) -> None:
    """Remove a build folder. One that is half removed must not be taken for a build that lacks its `build.json`."""
    removing = building.with_name(building.name.removesuffix(BUILDING) + REMOVING)
    rename_durably(building, removing)
    shutil.rmtree(removing)


def next_building_folder(index: Path) -> Path:
    """The folder of a new build: its name is one more than the highest ever used."""
    return index / "generations" / f"{high_water_marks(index).generation + 1:06d}{BUILDING}"


def begin(
    index: Path, operation: str, fingerprint: Fingerprint | None = None, sharding: Sharding | None = None
) -> Path:
    """Make a fresh folder for a build. `fingerprint`, `sharding`: of one that holds encoded work and may go on."""
    building = next_building_folder(index)
    started: dict[str, Any] = {"operation": operation}
    if fingerprint is not None:
        started["fingerprint"] = asdict(fingerprint)
    if sharding is not None:
        started["sharding"] = asdict(sharding)
    building.mkdir(parents=True)
    write_atomically(building / BUILD_FILE, (json.dumps(started, indent=2) + "\n").encode("utf-8"))
    return building


def resume_or_begin(
    index: Path,
    operation: str,
    fingerprint: Fingerprint,
    sharding: Sharding | None = None,
    *,
    checkpoint: Checkpoint | None = None,
) -> Path:
    """The folder of the unfinished build of this operation, or a fresh one.

    `checkpoint`: that encodes; a build that an earlier version began is known by it.

    Raises:
        IndexMismatchError: the unfinished one was started with another fingerprint.
        StoreError: it is another operation's, or one of other shards.
    """
    for building in unfinished_builds(index):
        for leftover in building.glob("*.tmp"):
            leftover.unlink()
        _require_same(building, operation, fingerprint, checkpoint)
        _require_same_shards(building, sharding)
        logger.info("resuming the unfinished build %s", building)
        return building
    return begin(index, operation, fingerprint, sharding)


def _has_begun(building: Path) -> bool:
    """Whether the process that made the folder lived long enough to put anything into it."""
    return (building / BUILD_FILE).is_file() or (building / "shards").exists()


def _require_same(building: Path, operation: str, fingerprint: Fingerprint, checkpoint: Checkpoint | None) -> None:
    started = _read(building)
    try:
        started_operation, started_fingerprint = (
            started["operation"],
            checked_fields(Fingerprint, started["fingerprint"]),
        )
    except (KeyError, ValueError) as exc:
        raise StoreError(
            f"{building}: an unfinished build without a readable {BUILD_FILE} ({exc}); remove it to start over"
        ) from exc
    if started_operation != operation:
        raise StoreError(
            f"{building}: an unfinished `kalm-cache {started_operation}`; run that again to finish it, or remove the "
            "folder to give up what it has encoded"
        )
    if checkpoint is not None:
        started_fingerprint = started_fingerprint.updated(checkpoint)
    way_out = f"Run with the same settings to finish it, or remove {building} to start over."
    require_equal(started_fingerprint, fingerprint, f"the unfinished build {building}", way_out)


def _require_same_shards(building: Path, sharding: Sharding | None) -> None:
    started = _read(building).get("sharding")
    if started != (None if sharding is None else asdict(sharding)):
        flag = f"with --shards {started.get('count')}" if isinstance(started, dict) else "without --shards"
        raise StoreError(f"{building}: an unfinished build; run again {flag} to finish it, or remove it to start over")


def _read(building: Path) -> dict[str, Any]:
    """What a build was started as; nothing where that cannot be read."""
    try:
        return read_json_object(building / BUILD_FILE)
    except (OSError, ValueError):
        return {}
