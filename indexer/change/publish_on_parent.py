"""Publish a generation that links its parent's segments and adds one segment, or tombstones; the lock is held.

Small segments are folded before that: who changes an index leaves one generation, and goes back by one step.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexer.change.changed_metadata import ChangedMetadata
from indexer.change.fold import fold_small
from indexer.change.retention import retire
from kalm_cache.generations.build_folders import begin
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import Counts, Manifest, SegmentReceipt
from kalm_cache.generations.publish import name_for, now, publish, receipts
from kalm_cache.generations.tombstones import Tombstones, write_tombstones
from kalm_cache.metadata import COLUMNS
from kalm_cache.storage.durable import link_or_copy


def publish_on_parent(
    index: Path,
    building: Path,
    operation: str,
    parent: Generation,
    tombstones: Tombstones,
    counts: Counts,
    *,
    deleted: int = 0,
    added: SegmentReceipt | None = None,
    metadata: ChangedMetadata | None = None,
) -> Generation:
    """Publish a build of its parent's segments, at most one new segment, and these tombstones.

    The parent's files are linked, and their receipts taken over, so that the cost is that of what is new. Where
    `metadata` changes, the columns of its segments are written anew. Then small segments are folded, within a budget,
    and generations that are many steps back are removed.
    """
    drop_other_segments(building, None if added is None else added.name)
    manifest = assemble(building, parent, tombstones, added, metadata)
    manifest = replace(
        manifest,
        generation=name_for(index, building),
        created_at=now(),
        counts=counts,
        parent=parent.name,
        operation=operation,
        deleted=deleted,
    )
    manifest = fold_small(index, building, manifest)
    live = publish(index, building, manifest)
    retire(index, live)
    return live


def publish_changed(index: Path, operation: str, parent: Generation, **changes: Any) -> Generation:
    """Publish all of the parent under a manifest with other values: nothing is written but that."""
    changed = replace(parent, manifest=replace(parent.manifest, **changes))
    counts = parent.manifest.counts
    return publish_on_parent(index, begin(index, operation), operation, changed, parent.tombstones(), counts)


def assemble(
    building: Path,
    parent: Generation,
    tombstones: Tombstones,
    added: SegmentReceipt | None = None,
    metadata: ChangedMetadata | None = None,
) -> Manifest:
    """Link the parent's segments into the building folder; its manifest, as far as files and segments go."""
    linked = {name: receipt for name, receipt in parent.manifest.files.items() if name.startswith("shards/")}
    for name in linked:
        link_or_copy(parent.folder / name, building / name)
    write_tombstones(building, tombstones)
    for name in metadata.write(building, parent) if metadata is not None else ():
        linked = {file: receipt for file, receipt in linked.items() if not file.startswith(f"shards/{name}/{COLUMNS}/")}
    segments = [*parent.manifest.segments, *([added] if added is not None else [])]
    return replace(
        parent.manifest,
        files=receipts(building, linked),
        segments=segments,
        columns=parent.manifest.columns if metadata is None else dict(metadata.schema),
        next_ordinal=max(parent.manifest.next_ordinal, *(segment.next_ordinal for segment in segments)),
    )


def drop_other_segments(building: Path, name: str | None) -> None:
    """Remove what an interrupted run has linked or folded: its parent may not be the live generation any more."""
    for folder in (building / "shards").glob("*"):
        if name is None or folder.name.split(".")[0] != name:
            shutil.rmtree(folder)
