"""A generation that has its parent's shards and a little more, or hides a little more. Under the build lock only."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kalm_cache.generations.generation import Counts, Generation, ShardReceipt, name_for, publish, receipts
from kalm_cache.generations.tombstones import HIDDEN_FILE, Hidden
from kalm_cache.storage.durable import link_or_copy


def publish_beside(
    index: Path,
    building: Path,
    operation: str,
    parent: Generation,
    hidden: Hidden,
    counts: Counts,
    *,
    deleted: int = 0,
    added: ShardReceipt | None = None,
) -> Generation:
    """Publish a build with its parent's shards, one of its own at most, and this list of what is hidden.

    The parent's files are linked, and their receipts taken over, so that the cost is that of what is new.
    """
    shards = [*parent.manifest.shards, *([added] if added is not None else [])]
    drop_shards_but(building, None if added is None else added.name)
    linked = {name: one for name, one in parent.manifest.files.items() if name.startswith("shards/")}
    for name in linked:
        link_or_copy(parent.folder / name, building / name)
    (building / HIDDEN_FILE).unlink(missing_ok=True)
    if len(hidden):
        (building / HIDDEN_FILE).write_bytes(hidden.pack())
    manifest = replace(
        parent.manifest,
        generation=name_for(index, building),
        created_at=now(),
        counts=counts,
        files=receipts(building, linked),
        parent=parent.name,
        shards=shards,
        next_number=max(shard.next_number for shard in shards),
        operation=operation,
        deleted=deleted,
    )
    return publish(index, building, manifest)


def drop_shards_but(building: Path, name: str | None) -> None:
    """Remove what an interrupted run has linked: its parent may not be the live generation any more."""
    for folder in (building / "shards").glob("*"):
        if name is None or folder.name.split(".")[0] != name:
            shutil.rmtree(folder)


def now() -> str:
    """For `created_at`, and nothing else: no decision hangs on a clock."""
    return datetime.now(UTC).isoformat(timespec="seconds")
