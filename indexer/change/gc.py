"""Old generations -> free space, and deleted passages -> no bytes of them left. Never touches what is being read.

The live generation stays, and some before it for a rollback, unless these hold passages that were deleted since. If the
live one has tombstones, a new base is written first, without the passages that these name.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from indexer.build.counts import BuildCounts
from indexer.build.shards.base import build_base
from indexer.build.spec import BuildSpec
from indexer.models import BuildModels
from indexer.reuse.reusable_segments import open_to_copy
from indexer.reuse.stored_embedder import StoredEmbedder
from kalm_cache.codec import get_codec
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.build_folders import begin, recover
from kalm_cache.generations.generation import (
    Generation,
    open_current,
    open_generation,
    published_names,
    remove_unless_read,
    require_valid,
)
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import build_lock


@dataclass(frozen=True, slots=True)
class OldGeneration:
    """One that is not live: what became of it, and why."""

    generation: str
    why: str


@dataclass(slots=True)
class GcReport:
    """What gc did, or would do. `compacted` counts stored passages that a new base was written without.

    `in_use` could not be removed, as someone reads them: run gc again later. `freed_bytes` are those of files that no
    generation has any more.
    """

    index: str
    generation: str
    compacted: int = 0
    removed: list[OldGeneration] = field(default_factory=list)
    kept: list[OldGeneration] = field(default_factory=list)
    in_use: list[OldGeneration] = field(default_factory=list)
    freed_bytes: int = 0
    seconds: float = 0.0


def collect_garbage(index: Path, keep: int = 1, *, dry_run: bool = False) -> GcReport:
    """Write a new base without tombstoned passages if there are any, and remove generations that nobody needs.

    Args:
        index: the index folder.
        keep: generations before the live one to keep for a rollback, at most.
        dry_run: only say what would be done.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        UsageError: there is something to leave out, and neither texts nor a first stage to take the rest of it from.
        StoreError: the disk is full or cannot be written, or its file system has no locks.
    """
    started = time.perf_counter()
    open_current(index)  # first: a wrong folder should not be made
    with build_lock(index), disk_errors(index):
        if not dry_run:
            recover(index)
        live = open_current(index)
        tombstones = len(live.tombstones())
        report = GcReport(str(index), live.name, compacted=tombstones)
        before = _files_of(index)
        if tombstones and not dry_run:
            live = compact(index, live)
            report.generation = live.name
        needed = _kept(index, live, keep, report)
        _remove(index, needed, report, will_be_compacted=tombstones > 0 and dry_run, dry_run=dry_run)
        after = _files_of(index)
    gone = {inode: size for inode, size in before.items() if inode not in after}
    report.freed_bytes = sum(gone.values())
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def compact(
    index: Path,
    live: Generation,
    operation: str = "gc",
    on_progress: Callable[[BuildCounts], None] = lambda counts: None,
) -> Generation:
    """Publish a generation of one base that holds what the live one shows, byte for byte. Needs the build lock."""
    require_valid(live)
    building, codec = begin(index, operation), get_codec(live.manifest.fingerprint.codec)  # nothing is encoded
    with ExitStack() as stack:
        spec = BuildSpec(
            index=index,
            operation=operation,
            template=live.manifest,
            parent=live,
            models=BuildModels((), StoredEmbedder(live), codec),
            batch_tokens=1,
            sources=open_to_copy(live, codec, stack),
            keep_missing=True,
            columns=dict(live.manifest.columns),
        )
        compacted, _ = build_base(spec, (), building, on_reject=lambda line: None, on_progress=on_progress)
    return compacted


def _kept(index: Path, live: Generation, keep: int, report: GcReport) -> set[str]:
    """The generations to keep: the live one and those to roll back to. `report` gets the reason where these end."""
    needed, generation = {live.name}, live
    for _ in range(keep):
        parent = generation.manifest.parent
        if parent is None or parent not in published_names(index):
            break
        try:
            before = open_generation(index / "generations" / parent)
            deleted = before.tombstones().deleted.any()
        except KalmCacheError:
            break  # nothing that one could go back to
        if generation.manifest.deleted or deleted:
            break
        needed.add(before.name)
        report.kept.append(OldGeneration(before.name, f"{generation.name} was made from it"))
        generation = before
    return needed


def _remove(index: Path, needed: set[str], report: GcReport, *, will_be_compacted: bool, dry_run: bool) -> None:
    live = open_generation(index / "generations" / report.generation)
    for name in published_names(index):
        if name in needed and not (will_be_compacted and name == live.name):
            continue
        folder = index / "generations" / name
        old = OldGeneration(name, _why(index, name, live))
        is_free = remove_unless_read(folder, dry_run=dry_run)
        (report.removed if is_free else report.in_use).append(old)


def _why(index: Path, name: str, live: Generation) -> str:
    deleted, generation = 0, live
    while generation.name != name:
        deleted += generation.manifest.deleted
        parent = generation.manifest.parent
        if parent is None or parent not in published_names(index):
            return "the live generation was not made from it"
        try:
            generation = open_generation(index / "generations" / parent)
        except KalmCacheError:
            return "the live generation was not made from it"
    try:
        deleted += int(generation.tombstones().deleted.sum())
    except KalmCacheError as exc:
        return f"it is damaged: {exc}"
    return f"it holds {deleted} passages that were deleted" if deleted else "it is older than those to keep"


def _files_of(index: Path) -> dict[tuple[int, int], int]:
    """Size of every file by what it is, not by its names."""
    stats = (path.stat() for path in (index / "generations").rglob("*") if path.is_file())
    return {(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}
