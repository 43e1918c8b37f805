"""Generations on disk: names, manifest, publish. Knows files, not records or tensors.

INDEX/CURRENT                          name of the live generation
INDEX/LOCK                             held (flock) by the one process that may build
INDEX/generations/000001/manifest.json
INDEX/generations/000001/build.json    what its build was started with
INDEX/generations/000001/shards/00000/ passages.lmdb, first_stage/
INDEX/generations/000002.building/     an unfinished build
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kalm_cache.durable import file_digest, rename_durably, sync_tree, write_atomically
from kalm_cache.errors import IndexLockedError, IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.fingerprint import Fingerprint

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CHECKSUM = "checksum"
BUILDING = ".building"
SHARD = "00000"


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


@dataclass(frozen=True, slots=True)
class Manifest:
    """The receipt of a published generation. `files` maps paths relative to the generation's folder."""

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
    parent: str | None = None
    shards: list[str] = field(default_factory=lambda: [SHARD])
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """The manifest file's content: every field, and a checksum over them."""
        fields = asdict(self)
        return (json.dumps(fields | {CHECKSUM: _checksum(fields)}, indent=2) + "\n").encode("utf-8")


@dataclass(frozen=True, slots=True)
class Generation:
    """A published generation: where it is, and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def shard(self) -> Path:
        """The folder of its one shard."""
        return shard_folder(self.folder)


def shard_folder(generation_folder: Path) -> Path:
    """Where a generation's one shard lives."""
    return generation_folder / "shards" / SHARD


def open_current(index: Path) -> Generation:
    """The live generation of an index folder.

    Raises:
        IndexNotFoundError: nothing has been published there.
        StoreError: the manifest cannot be read.
        IndexMismatchError: it was written by a version with another schema.
    """
    current = index / "CURRENT"
    try:
        name = current.read_text("utf-8").strip()
    except FileNotFoundError as exc:
        way_out = f"run: kalm-cache index CORPUS --index {index}"
        raise IndexNotFoundError(f"{index}: no published index here; {way_out}") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"{current}: cannot be read: {exc}") from exc
    return open_generation(index / "generations" / name)


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
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise IndexMismatchError(
            f"{folder}: schema version {raw.get('schema_version')}, this version reads {SCHEMA_VERSION}; re-index"
        )
    if raw.pop(CHECKSUM, None) != _checksum(raw):
        raise StoreError(f"{path}: checksum mismatch, the file was changed after it was published")
    return Generation(folder, _parse_manifest(raw, path))


def require_whole(generation: Generation) -> None:
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
        }
        return Manifest(**(raw | nested))
    except (KeyError, TypeError, AttributeError) as exc:
        raise StoreError(f"{path}: a field is missing or unknown: {exc}") from exc


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@contextmanager
def build_lock(index: Path) -> Iterator[None]:
    """Hold the right to build in this folder. Raises `IndexLockedError` when another process has it."""
    try:
        index.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(index / "LOCK", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as exc:
        raise StoreError(f"{index}: cannot be written: {exc}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise IndexLockedError(f"{index}: another process is building here; wait for it to finish") from exc
    try:
        yield
    finally:
        os.close(descriptor)  # closing releases the lock


def building_folder(index: Path) -> Path:
    """The folder of the unfinished build, or of the next one: one more than the highest number ever used."""
    generations = index / "generations"
    unfinished = sorted(generations.glob(f"*{BUILDING}"))
    if unfinished:
        return unfinished[-1]
    numbers = [int(path.name) for path in generations.glob("[0-9]*") if path.name.isdigit()]
    return generations / f"{max(numbers, default=0) + 1:06d}{BUILDING}"


def receipts(folder: Path) -> dict[str, FileReceipt]:
    """Size and digest of every file below `folder`, by relative path; the manifest itself is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): FileReceipt(path.stat().st_size, file_digest(path)) for path in files}


def publish(index: Path, building: Path, manifest: Manifest) -> Generation:
    """Make a finished build the live generation: manifest, fsync, rename, `CURRENT`. Each step is all or nothing."""
    write_atomically(building / MANIFEST, manifest.to_json())
    sync_tree(building)
    published = building.with_name(manifest.generation)
    rename_durably(building, published)
    write_atomically(index / "CURRENT", f"{manifest.generation}\n".encode())
    return Generation(published, manifest)
