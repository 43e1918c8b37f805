"""Publish a generation that links its parent's segments and adds one segment, or tombstones; the lock is held."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import Counts, SegmentReceipt
from kalm_cache.generations.publish import name_for, now, publish, receipts
from kalm_cache.generations.tombstones import TOMBSTONES_FILE, Tombstones
from kalm_cache.storage.durable import link_or_copy


def publish_beside(
    index: Path,
    building: Path,
    operation: str,
    parent: Generation,
    tombstones: Tombstones,
    counts: Counts,
    *,
    deleted: int = 0,
    added: SegmentReceipt | None = None,
) -> Generation:
    """Publish a build of its parent's segments, at most one new segment, and these tombstones.

    The parent's files are linked, and their receipts taken over, so that the cost is that of what is new.
    """
    segments = [*parent.manifest.segments, *([added] if added is not None else [])]
    drop_segments_but(building, None if added is None else added.name)
    linked = {name: receipt for name, receipt in parent.manifest.files.items() if name.startswith("shards/")}
    for name in linked:
        link_or_copy(parent.folder / name, building / name)
    (building / TOMBSTONES_FILE).unlink(missing_ok=True)
    if len(tombstones):
        (building / TOMBSTONES_FILE).write_bytes(tombstones.pack())
    manifest = replace(
        parent.manifest,
        generation=name_for(index, building),
        created_at=now(),
        counts=counts,
        files=receipts(building, linked),
        parent=parent.name,
        segments=segments,
        next_ordinal=max(segment.next_ordinal for segment in segments),
        operation=operation,
        deleted=deleted,
    )
    return publish(index, building, manifest)


def drop_segments_but(building: Path, name: str | None) -> None:
    """Remove what an interrupted run has linked: its parent may not be the live generation any more."""
    for folder in (building / "shards").glob("*"):
        if name is None or folder.name.split(".")[0] != name:
            shutil.rmtree(folder)
