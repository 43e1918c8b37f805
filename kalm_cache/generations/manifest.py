"""What a published generation says of itself: counts, receipts of its files and segments, and the manifest of them all.

Knows how a manifest is written and read back; which generation is live and how one is published, it does not know.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import DamagedRecordError, IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.durable import file_digest
from kalm_cache.storage.record import Record
from kalm_cache.system import explained

if TYPE_CHECKING:
    from kalm_cache.first_stage import DenseChoice

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """Size and SHA-256 of one file of a generation."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileReceipt:
        """The receipt of a file as it is now. Raises `OSError`."""
        return FileReceipt(path.stat().st_size, file_digest(path))

    def has_digest_of(self, path: Path) -> bool:
        """Whether the file's content is what it was when it was published. Raises `OSError`."""
        return file_digest(path) == self.sha256


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


@dataclass(slots=True)
class RecordTally:
    """Counts that grow record by record."""

    passages: int = 0
    tokens: int = 0
    pooled_states: int = 0
    truncated: int = 0
    payload_bytes: int = 0

    def add(self, record: Record | DamagedRecordError | None) -> None:
        """Count a record. A damaged one is a passage, and nothing else: what it held is not known."""
        self.passages += 1
        if isinstance(record, Record):
            self.tokens += record.tokens
            self.pooled_states += record.rows
            self.truncated += record.truncated
            self.payload_bytes += len(record.payload)

    def counts(self) -> Counts:
        """As the manifest keeps them."""
        return Counts(self.passages, self.tokens, self.pooled_states, self.truncated, self.payload_bytes)


@dataclass(frozen=True, slots=True)
class SegmentReceipt:
    """One segment: what is stored in it, tombstoned passages included, and the range [first, next) of its ordinals.

    Ranges of a generation's segments do not overlap, so that an ordinal says where its passage is.
    """

    name: str
    counts: Counts
    first_ordinal: int
    next_ordinal: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The receipt of a published generation.

    `counts` are of what it shows, `files` maps paths relative to its folder. `operation` made it from `parent`, and
    `deleted` counts the passages of the parent that it does not show, in no version. No passage has had the ordinal
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


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a generation's folder.

    Raises:
        IndexNotFoundError: there is none.
        StoreError: it cannot be read, or is damaged.
        IndexMismatchError: it was written by a version with another schema.
    """
    path = folder / MANIFEST
    raw = _read_object(path)
    version = raw.get("schema_version")
    if not isinstance(version, int):
        raise StoreError(f"{path}: has no schema version, the file was changed after it was published")
    if version != SCHEMA_VERSION:
        raise IndexMismatchError(f"{path}: schema version {version}, this version reads {SCHEMA_VERSION}; re-index")
    fields = unpack_checked(raw)
    if fields is None:
        raise StoreError(f"{path}: checksum mismatch, the file was changed after it was published")
    return _parse(fields, path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise IndexNotFoundError(f"{path.parent}: CURRENT names a generation without a {MANIFEST}") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: cannot be read, or is not JSON: {explained(exc, path)}") from exc
    if not isinstance(raw, dict):
        raise StoreError(f"{path}: not a JSON object")
    return raw


def _parse(fields: dict[str, Any], path: Path) -> Manifest:
    try:
        nested = {
            "fingerprint": Fingerprint(**fields["fingerprint"]),
            "counts": Counts(**fields["counts"]),
            "files": {name: FileReceipt(**receipt) for name, receipt in fields["files"].items()},
            "segments": [
                SegmentReceipt(**(segment | {"counts": Counts(**segment["counts"])})) for segment in fields["segments"]
            ],
        }
        if not nested["segments"]:
            raise KeyError("segments")
        return Manifest(**(fields | nested))
    except (KeyError, TypeError, AttributeError) as exc:
        raise StoreError(f"{path}: a field is missing or unknown: {exc}") from exc
