"""What a published generation says of itself: counts, receipts of its files and segments, and the manifest of them all.

Knows how a manifest is written and read back; which generation is live and how one is published, it does not know.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from kalm_cache.errors import DamagedRecordError, IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.foreign_files import (
    STRICT,
    Count,
    GenerationName,
    Positive,
    RelativePath,
    checked_fields,
    parse_json,
    read_json_object,
)
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.passage import DEFAULT_TEMPLATE
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.durable import file_digest
from kalm_cache.storage.record import Record
from kalm_cache.system import explained

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class FileReceipt:
    """Size and SHA-256 of one file of a generation."""

    bytes: Count
    sha256: str
    __pydantic_config__ = STRICT

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

    passages: Count
    tokens: Count
    pooled_states: Count
    truncated: Count
    payload_bytes: Count
    __pydantic_config__ = STRICT

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

    name: GenerationName
    counts: Counts
    first_ordinal: Count
    next_ordinal: Count
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class Manifest:
    """The receipt of a published generation.

    `counts` are of what it shows, `files` maps paths relative to its folder. `operation` made it from `parent`, and
    `deleted` counts the passages of the parent that it does not show, in no version. No passage has had the ordinal
    `next_ordinal` or a higher one. `passages_per_second` was measured when all of it was encoded last, if it ever was.
    `passage_template` made the passages of records; it is no part of the fingerprint, as another one makes other texts.
    """

    generation: GenerationName
    created_at: str
    model: str
    embedder: str
    embedder_query_prompt: str
    embedder_passage_prompt: str
    width: Positive
    fingerprint: Fingerprint
    counts: Counts
    files: dict[RelativePath, FileReceipt]
    parent: GenerationName | None
    segments: Annotated[list[SegmentReceipt], Field(min_length=1)]
    next_ordinal: Count
    operation: str = "index"
    deleted: Count = 0
    dense_index: Literal["auto", "flat", "hnsw", "ivf"] = "auto"  # a `DenseChoice`
    passages_per_second: Annotated[float, Field(ge=0)] | None = None
    passage_template: str = DEFAULT_TEMPLATE
    schema_version: int = SCHEMA_VERSION
    __pydantic_config__ = STRICT

    def to_json(self) -> bytes:
        """The manifest file's content: every field but a template that is the default, and a checksum over them."""
        fields = asdict(self)
        if self.passage_template == DEFAULT_TEMPLATE:
            del fields["passage_template"]  # manifests of earlier versions have none
        return pack_checked(fields)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a generation's folder.

    Raises:
        IndexNotFoundError: there is none.
        StoreError: it cannot be read, or is damaged.
        IndexMismatchError: it was written by a version with another schema.
    """
    path = folder / MANIFEST
    return _manifest_of(_read_object(path), str(path))


def parse_manifest(content: bytes, name: str) -> Manifest:
    """As `read_manifest`, of the file's content; errors begin with `name`."""
    try:
        raw = parse_json(content)
    except ValueError as exc:
        raise StoreError(f"{name}: is not JSON: {exc}") from exc
    return _manifest_of(raw if isinstance(raw, dict) else {}, name)


def _manifest_of(raw: dict[str, Any], path: str) -> Manifest:
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
        return read_json_object(path)
    except FileNotFoundError as exc:
        raise IndexNotFoundError(f"{path.parent}: CURRENT names a generation without a {MANIFEST}") from exc
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path}: cannot be read, or is not JSON: {explained(exc, path)}") from exc


def _parse(fields: dict[str, Any], path: str) -> Manifest:
    try:
        manifest = checked_fields(Manifest, fields)
        _check_segments(manifest)
    except ValueError as exc:
        raise StoreError(f"{path}: a field is missing or unknown, or holds what cannot be: {exc}") from exc
    return manifest


def _check_segments(manifest: Manifest) -> None:
    """Raise `ValueError` where the segments' numbers do not go together."""
    names = [segment.name for segment in manifest.segments]
    if len(set(names)) < len(names):
        raise ValueError("segments: two have the same name")
    end = 0
    for segment in sorted(manifest.segments, key=lambda one: (one.first_ordinal, one.next_ordinal)):
        room = segment.next_ordinal - segment.first_ordinal
        if segment.first_ordinal < end or room < segment.counts.passages:
            raise ValueError(f"segments: the ordinals of segment {segment.name} do not fit the others or its passages")
        end = segment.next_ordinal
    if manifest.next_ordinal < end:
        raise ValueError(f"next_ordinal: it is {manifest.next_ordinal}, and a segment's is {end}")
    if manifest.counts.passages > sum(segment.counts.passages for segment in manifest.segments):
        raise ValueError("counts.passages: it is more than the segments hold")
