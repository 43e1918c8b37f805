"""Generations on disk: names, manifest, publish, roll back. Knows files, not records or tensors.

INDEX/CURRENT                          name of the live generation, with a checksum (see current.py)
INDEX/JOURNAL                          highest name and number ever given; what is being published (see journal.py)
INDEX/LOCK                             held (flock) by the one process that may change the folder
INDEX/generations/000001/manifest.json shared (flock) by who reads the generation
INDEX/generations/000001/build.json    what its build was started with
INDEX/generations/000001/hidden.bin    stored passages that it does not show, if there are any (see hidden.py)
INDEX/generations/000001/shards/00000/ states.lmdb, passages.lmdb, store.json, first_stage/
INDEX/generations/000002.building/     an unfinished build
INDEX/generations/000001.removing/     a generation that gc has not finished removing

A published file never changes. A generation that adds or deletes a little has its parent's segments under their names
(hard links), small segments of its own, and its own list of what is hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.generations.current import current_name, write_current
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.journal import JOURNAL, Journal, read_journal
from kalm_cache.generations.tombstones import TOMBSTONES_FILE, Tombstones, read_tombstones
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.durable import file_digest, rename_durably, sync_tree, write_atomically
from kalm_cache.storage.locks import SharedLock, share

if TYPE_CHECKING:
    from kalm_cache.first_stage import DenseChoice

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
BUILDING, REMOVING = ".building", ".removing"
BASE_SEGMENT = "00000"


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """Size and SHA-256 of one file of a generation."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What a generation holds. `payload_bytes` counts compressed states alone, without headers and pages."""

    passages: int
    tokens: int
    pooled_states: int
    truncated: int
    payload_bytes: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(mine + theirs for mine, theirs in zip(_values(self), _values(other), strict=True)))

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(mine - theirs for mine, theirs in zip(_values(self), _values(other), strict=True)))


def _values(counts: Counts) -> list[int]:
    return list(asdict(counts).values())


NO_COUNTS = Counts(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class SegmentReceipt:
    """One segment: what is stored in it, hidden passages included, and the range [first, next) of its numbers.

    Ranges of a generation's segments do not overlap, so that a number says where its passage is.
    """

    name: str
    counts: Counts
    first_ordinal: int
    next_ordinal: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The receipt of a published generation.

    `counts` are of what it shows, `files` maps paths relative to its folder. `operation` made it from `parent`, and
    `deleted` counts the passages of the parent that it does not show, in no version. No passage has had the number
    `next_ordinal` or a higher one. `passages_per_second` was measured when all of it was encoded last, if it ever was.
    """

    generation: str
    created_at: str
    model: str
    embedder: str
    embedder_query_prompt: str
    embedder_passage_prompt: str
    width: int
    fingerprint: Fingerprint
    counts: Counts
    files: dict[str, FileReceipt]
    parent: str | None
    segments: list[SegmentReceipt]
    next_ordinal: int
    operation: str = "index"
    deleted: int = 0
    dense_index: DenseChoice = "auto"
    passages_per_second: float | None = None
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The manifest file's content: every field, and a checksum over them."""
        return pack_checked(asdict(self))


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

    def parts(self) -> Iterator[Generation]:
        """The generation as if it had one segment, for each of them: the counts are that shard's."""
        for segment in self.manifest.segments:
            own = replace(self.manifest, counts=segment.counts, segments=[segment])
            yield Generation(self.folder, own, segment.name)

    def part(self, name: str) -> Generation:
        """The one of `parts` with that segment."""
        return next(part for part in self.parts() if part.segment_name == name)

    def tombstones(self) -> Tombstones:
        """What is stored in its segments and not shown. Raises `StoreError`."""
        tombstones = read_tombstones(self.folder)
        if not len(tombstones) and TOMBSTONES_FILE in self.manifest.files:
            raise StoreError(f"{self.folder / TOMBSTONES_FILE} is missing or empty; run kalm-cache verify")
        return tombstones


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
    """Read one generation's manifest; errors as in `open_current`."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise IndexNotFoundError(f"{folder}: CURRENT names a generation without a {MANIFEST}") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: cannot be read, or is not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise StoreError(f"{path}: not a JSON object")
    version = raw.get("schema_version")
    if not isinstance(version, int):
        raise StoreError(f"{path}: has no schema version, the file was changed after it was published")
    if version != SCHEMA_VERSION:
        raise IndexMismatchError(f"{path}: schema version {version}, this version reads {SCHEMA_VERSION}; re-index")
    fields = unpack_checked(raw)
    if fields is None:
        raise StoreError(f"{path}: checksum mismatch, the file was changed after it was published")
    manifest = _parse_manifest(fields, path)
    return Generation(folder, manifest, manifest.segments[0].name)


def require_valid(generation: Generation) -> None:
    """Raise `StoreError` when a file is missing or has another size: a map of a file that was cut kills the process."""
    for name, receipt in generation.manifest.files.items():
        path = generation.folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != receipt.bytes:
            is_there = "is missing" if found is None else f"has {found} bytes"
            raise StoreError(f"{path} {is_there}, its receipt says {receipt.bytes}; run kalm-cache verify")


def _parse_manifest(raw: dict[str, Any], path: Path) -> Manifest:
    try:
        nested = {
            "fingerprint": Fingerprint(**raw["fingerprint"]),
            "counts": Counts(**raw["counts"]),
            "files": {name: FileReceipt(**receipt) for name, receipt in raw["files"].items()},
            "segments": [
                SegmentReceipt(**(segment | {"counts": Counts(**segment["counts"])})) for segment in raw["segments"]
            ],
        }
        if not nested["segments"]:
            raise KeyError("segments")
        return Manifest(**(raw | nested))
    except (KeyError, TypeError, AttributeError) as exc:
        raise StoreError(f"{path}: a field is missing or unknown: {exc}") from exc


def published_names(index: Path) -> list[str]:
    """The generations in a folder, rising, live or not."""
    return sorted(path.name for path in (index / "generations").glob("[0-9]*") if path.name.isdigit())


def next_names(index: Path) -> Journal:
    """The generation and the passage number that were never given yet, whatever was removed since."""
    journal = read_journal(index)
    manifests = []
    for name in published_names(index):
        try:
            manifests.append(open_generation(index / "generations" / name).manifest)
        except (StoreError, IndexMismatchError, IndexNotFoundError):
            continue  # its name counts; what numbers it gave, the journal knows
    building = [path.name.removesuffix(BUILDING) for path in (index / "generations").glob(f"*{BUILDING}")]
    names = [int(name) for name in (*published_names(index), *building) if name.isdigit()]
    return Journal(
        max([journal.generation, *names]),
        max([journal.next_ordinal, *(manifest.next_ordinal for manifest in manifests)]),
        journal.publishing,
    )


def next_building_folder(index: Path) -> Path:
    """The folder of a new build: its name is one more than the highest ever used."""
    return index / "generations" / f"{next_names(index).generation + 1:06d}{BUILDING}"


def unfinished_builds(index: Path) -> list[Path]:
    """The folders of builds that were begun, oldest first."""
    return sorted((index / "generations").glob(f"*{BUILDING}"))


def receipts(folder: Path, known: dict[str, FileReceipt] | None = None) -> dict[str, FileReceipt]:
    """Size and digest of every file below `folder`, by relative path; the manifest itself is left out.

    `known`: receipts of files that were linked from another generation, and are not read again.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        name = path.relative_to(folder).as_posix()
        found[name] = (known or {}).get(name) or FileReceipt(path.stat().st_size, file_digest(path))
    return found


def name_for(index: Path, building: Path) -> str:
    """What a finished build will be called: as its folder, unless a later one was published meanwhile."""
    own, published = building.name.removesuffix(BUILDING), published_names(index)
    return own if not published or int(published[-1]) < int(own) else f"{next_names(index).generation + 1:06d}"


def publish(index: Path, building: Path, manifest: Manifest) -> Generation:
    """Make a finished build the live generation: manifest, fsync, journal, rename, `CURRENT`.

    Each step is all or nothing; of a process that dies between the last two, `finish_publishing` does the rest.
    """
    write_atomically(building / MANIFEST, manifest.to_json())
    sync_tree(building)
    highest = next_names(index)
    journal = Journal(
        max(highest.generation, int(manifest.generation)),
        max(highest.next_ordinal, manifest.next_ordinal),
        manifest.generation,
    )
    write_atomically(index / JOURNAL, journal.to_json())
    published = building.with_name(manifest.generation)
    rename_durably(building, published)
    write_current(index, manifest.generation)
    return Generation(published, manifest, manifest.segments[0].name)


def finish_publishing(index: Path) -> str | None:
    """Make live what a process had published when it died, but for `CURRENT`; returns its name. Needs the build lock.

    Whether it is that, and not what someone rolled back from, the journal says.
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
    """Point `CURRENT` at a published generation. Needs the build lock. Raises `StoreError` when it is not whole."""
    require_valid(generation)
    highest = next_names(index)
    write_atomically(index / JOURNAL, replace(highest, publishing=None).to_json())  # first: this is no half publication
    write_current(index, generation.name)
