"""Published generations: what an index folder holds, opened by name or as the live one. Knows files, not records.

INDEX/CURRENT                          name of the live generation, with a checksum (see current.py)
INDEX/JOURNAL                          highest name and ordinal ever given; what is being published (see journal.py)
INDEX/LOCK                             held (flock) by the one process that may change the folder
INDEX/generations/000001/manifest.json what the generation is (see manifest.py); shared (flock) by who reads it
INDEX/generations/000001/build.json    what its build was started with
INDEX/generations/000001/hidden.bin    tombstones: stored passages that it does not show, if any (see tombstones.py)
INDEX/generations/000001/shards/00000/ a segment: states.lmdb, passages.lmdb, store.json, first_stage/, columns/
                                       (the shards of a base are 00000, 00001, …)
INDEX/generations/000002.building/     an unfinished build (see build_folders.py)
INDEX/generations/000001.removing/     a generation that gc has not finished removing

A published file never changes. A generation that adds or deletes a little has its parent's segments under their names
(hard links), small segments of its own, and its own list of tombstones.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kalm_cache.errors import IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.foreign_files import foreign_link, is_generation_name
from kalm_cache.generations.current import current_name
from kalm_cache.generations.journal import Journal, read_journal
from kalm_cache.generations.manifest import MANIFEST, FileReceipt, Manifest, SegmentReceipt, read_manifest
from kalm_cache.generations.sharding import Shard
from kalm_cache.generations.tombstones import TOMBSTONES_FILE, Tombstones, read_tombstones
from kalm_cache.storage.durable import rename_durably
from kalm_cache.storage.locks import SharedLock, exclude, share

if TYPE_CHECKING:
    from kalm_cache.model.checkpoint import Checkpoint

BUILDING, REMOVING = ".building", ".removing"  # suffixes of folders
BASE_SEGMENT = "00000"


@dataclass(frozen=True, slots=True)
class Generation:
    """A published generation: where it is, and its manifest; of several segments, `segment_name` is the one in view."""

    folder: Path
    manifest: Manifest
    segment_name: str = field(default=BASE_SEGMENT)

    @property
    def name(self) -> str:
        """What `CURRENT` calls it."""
        return self.manifest.generation

    @property
    def segment(self) -> Path:
        """The folder of the segment in view."""
        return segment_folder(self.folder, self.segment_name)

    @property
    def shard(self) -> Shard | None:
        """Which shard the segment in view is, if it is one."""
        sharding = self.manifest.sharding
        number = next(one.shard for one in self.manifest.segments if one.name == self.segment_name)
        return None if sharding is None or number is None else Shard(sharding, number)

    def parts(self) -> Iterator[Generation]:
        """The generation as if it had one segment, for each of them: the counts are that segment's."""
        for segment in self.manifest.segments:
            manifest = replace(self.manifest, counts=segment.counts, segments=[segment])
            yield Generation(self.folder, manifest, segment.name)

    def part(self, name: str) -> Generation:
        """The one of `parts` with that segment."""
        return next(part for part in self.parts() if part.segment_name == name)

    def updated(self, checkpoint: Checkpoint) -> Generation:
        """With `Manifest.updated`; the file stays as it is."""
        return replace(self, manifest=self.manifest.updated(checkpoint))

    def segments_of(self, shards: Collection[int] | None) -> list[str]:
        """The names of the segments that some shards need (`None` = all): of the base these, and every later one."""
        segments = self.manifest.segments
        return [one.name for one in segments if shards is None or one.shard is None or one.shard in shards]

    def files(self, segments: Collection[str] | None = None) -> dict[str, FileReceipt]:
        """The manifest's files, by relative path: those of some segments (`None` = of all), and those of none."""
        files = self.manifest.files.items()
        return {
            name: receipt
            for name, receipt in files
            if segments is None or not name.startswith("shards/") or name.split("/")[1] in segments
        }

    def tombstones(self) -> Tombstones:
        """What is stored in its segments and not shown. Raises `StoreError`."""
        tombstones = read_tombstones(self.folder)
        if not len(tombstones) and TOMBSTONES_FILE in self.manifest.files:
            raise StoreError(f"{self.folder / TOMBSTONES_FILE} is missing or empty; run kalm-cache verify")
        return tombstones

    def tombstones_of(self, segment: SegmentReceipt, tombstones: Tombstones) -> Tombstones:
        """Those of `tombstones`, all of the generation's, that name passages of one of its segments."""
        in_range = tombstones.between(segment.first_ordinal, segment.next_ordinal)
        shard = Generation(self.folder, self.manifest, segment.name).shard
        return in_range if shard is None or not len(in_range) else in_range.of_keys(shard.holds)


def segment_folder(generation_folder: Path, name: str = BASE_SEGMENT) -> Path:
    """Where a generation's segment of that name lives."""
    return generation_folder / "shards" / name


def open_current(index: Path) -> Generation:
    """The live generation of an index folder.

    Raises:
        IndexNotFoundError: nothing has been published there.
        StoreError: `CURRENT` or the manifest cannot be read, or is damaged.
        IndexMismatchError: the manifest was written by a version with another schema.
    """
    return open_generation(index / "generations" / current_name(index))


def open_and_share(index: Path) -> tuple[Generation, SharedLock]:
    """The live generation, and a lock that keeps it from being removed; errors as in `open_current`."""
    while True:
        name = current_name(index)
        folder = index / "generations" / name
        lock = share(folder / MANIFEST)
        if lock is not None:
            try:
                return open_generation(folder), lock
            except BaseException:
                lock.release()
                raise
        if current_name(index) == name:  # else it was removed when another one was live already
            open_generation(folder)  # says what is missing
            raise StoreError(f"{folder}: is being removed while it is live; run kalm-cache verify")


def open_generation(folder: Path) -> Generation:
    """Read one generation's manifest; errors as in `read_manifest`. No file of it may lie elsewhere."""
    manifest = read_manifest(folder)
    try:
        link = foreign_link(folder)
    except OSError as exc:
        raise StoreError(f"{folder}: cannot be read: {exc}") from exc
    if link is not None:
        raise StoreError(f"{link} is a link that leads out of the index; put the file itself in its place (cp -L)")
    return Generation(folder, manifest, manifest.segments[0].name)


def require_valid(generation: Generation, segments: Collection[str] | None = None) -> None:
    """Raise `StoreError` when a file is missing or has another size: a map of a file that was cut kills the process.

    `segments`: as in `Generation.files`.
    """
    for name, receipt in generation.files(segments).items():
        path = generation.folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != receipt.bytes:
            difference = "is missing" if size is None else f"has {size} bytes"
            raise StoreError(f"{path} {difference}, its receipt says {receipt.bytes}; run kalm-cache verify")


def published_names(index: Path) -> list[str]:
    """The generations in a folder, rising, live or not."""
    return sorted(path.name for path in (index / "generations").glob("[0-9]*") if is_generation_name(path.name))


def remove_unless_read(folder: Path, *, dry_run: bool = False) -> bool:
    """Remove a generation's folder; false where somebody reads it. Needs the build lock.

    Raises:
        StoreError: the file system refuses locks, so that nobody can tell.
    """
    with exclude(folder / MANIFEST) as is_free:
        if is_free and not dry_run:
            removing = folder.with_name(folder.name + REMOVING)
            rename_durably(folder, removing)  # so that what is half removed is not taken for a generation
            shutil.rmtree(removing)
    return is_free


def high_water_marks(index: Path) -> Journal:
    """The highest generation ever named and the lowest ordinal never given, whatever was removed since."""
    journal, published = read_journal(index), published_names(index)
    manifests = []
    for name in published:
        if int(name) <= journal.generation:
            continue  # written before the name was given: the journal knows what ordinals it gave
        try:
            manifests.append(read_manifest(index / "generations" / name))
        except (StoreError, IndexMismatchError, IndexNotFoundError):
            continue  # its name counts
    building = [path.name.removesuffix(BUILDING) for path in (index / "generations").glob(f"*{BUILDING}")]
    names = [int(name) for name in (*published, *building) if is_generation_name(name)]
    return Journal(
        max([journal.generation, *names]),
        max([journal.next_ordinal, *(manifest.next_ordinal for manifest in manifests)]),
        journal.publishing,
    )
