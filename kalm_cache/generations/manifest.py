"""What a published generation says of itself: counts, receipts of its files and segments, and the manifest of them all.

Knows how a manifest is written and read back; which generation is live and how one is published, it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from kalm_cache.calibration import FittedCalibration
from kalm_cache.errors import DamagedRecordError, IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.first_stage.bm25.analysis import Analysis
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
from kalm_cache.generations.fingerprint import Fingerprint, ServingDecoder
from kalm_cache.generations.sharding import Sharding
from kalm_cache.languages import ENGLISH
from kalm_cache.metadata.column_types import ColumnType
from kalm_cache.passage import DEFAULT_TEMPLATE
from kalm_cache.process.system import explained
from kalm_cache.storage.checked_json import pack_checked, unpack_checked
from kalm_cache.storage.durable import file_digest
from kalm_cache.storage.record import Record

if TYPE_CHECKING:
    from kalm_cache.model.checkpoint import Checkpoint

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

    Ranges of a generation's segments do not overlap, so that an ordinal says where its passage is. The shards of a base
    have one range in common: which of them has an ordinal is not known, and ordinals do not depend on the shards.
    `shard`: its number in a sharded base, `None` for every other segment.
    """

    name: GenerationName
    counts: Counts
    first_ordinal: Count
    next_ordinal: Count
    shard: Count | None = None
    __pydantic_config__ = STRICT


@dataclass(frozen=True, slots=True)
class Manifest:
    """The receipt of a published generation.

    `counts` are of what it shows, `files` maps paths relative to its folder. `operation` made it from `parent`, and
    `deleted` counts the passages of the parent that it does not show, in no version. No passage has had the ordinal
    `next_ordinal` or a higher one. `passages_per_second` was measured when all of it was encoded last, if it ever was.
    `passage_template` made the passages of records; it is no part of the fingerprint, as another one makes other texts.
    `sharding`: of its base, `None` where that is one segment. `decoder` answers over it; `None`: that of `model`, as in
    earlier versions, where one digest vouches for both. `calibration`: of that decoder over this index, if there is
    one. `language` and `fold_diacritics`: what BM25 analyses passages and queries by; see `Analysis.of`.
    `metadata`: which fields of the corpus are kept, as the setting says it; `columns`: those that it had, and their
    types.
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
    sharding: Sharding | None = None
    decoder: ServingDecoder | None = None
    calibration: FittedCalibration | None = None
    language: str = ENGLISH
    fold_diacritics: bool = False
    metadata: str = ""
    columns: dict[str, ColumnType] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION
    __pydantic_config__ = STRICT

    @property
    def analysis(self) -> Analysis:
        """How BM25 analyses what is added to the index."""
        return Analysis.of(self.language, folded=self.fold_diacritics)

    @property
    def base(self) -> list[SegmentReceipt]:
        """The segments of the last whole build: the shards by number, or the first segment."""
        return self.segments[: 1 if self.sharding is None else self.sharding.count]

    @property
    def tail(self) -> list[SegmentReceipt]:
        """The segments that were added since, by rising ordinals."""
        return self.segments[len(self.base) :]

    def updated(self, checkpoint: Checkpoint) -> Manifest:
        """As this version writes it, if an earlier one built it with `checkpoint`; else as it is.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        fingerprint = self.fingerprint.updated(checkpoint)
        if fingerprint == self.fingerprint:
            return self
        return replace(self, fingerprint=fingerprint, decoder=ServingDecoder.of(checkpoint, self.model))

    def to_json(self) -> bytes:
        """The manifest file's content, and a checksum over it. What earlier versions do not know is left out at its
        default.
        """
        fields = asdict(self)
        if self.passage_template == DEFAULT_TEMPLATE:
            del fields["passage_template"]
        if self.language == ENGLISH:
            del fields["language"]
        if not self.fold_diacritics:
            del fields["fold_diacritics"]
        for name in ("sharding", "decoder", "calibration", "metadata", "columns"):
            if not fields[name]:
                del fields[name]
        if self.fingerprint.sensitivity is None:
            del fields["fingerprint"]["sensitivity"]
        for segment in fields["segments"]:
            if segment["shard"] is None:
                del segment["shard"]
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
    _check_shards(manifest)
    end = 0
    for first, following, passages, name in sorted(_ranges(manifest)):
        if first < end or following - first < passages:
            raise ValueError(f"segments: the ordinals of segment {name} do not fit the others or its passages")
        end = following
    if manifest.next_ordinal < end:
        raise ValueError(f"next_ordinal: it is {manifest.next_ordinal}, and a segment's is {end}")
    if manifest.counts.passages > sum(segment.counts.passages for segment in manifest.segments):
        raise ValueError("counts.passages: it is more than the segments hold")


def _check_shards(manifest: Manifest) -> None:
    """Raise `ValueError` where the shards are not the first segments, by number, with one range of ordinals."""
    expected = range(0 if manifest.sharding is None else manifest.sharding.count)
    if [segment.shard for segment in manifest.segments if segment.shard is not None] != list(expected):
        raise ValueError("segments: their shards are not those of sharding, each once")
    shards = manifest.segments[: len(expected)]
    if len({(one.shard is None, one.first_ordinal, one.next_ordinal) for one in shards}) > 1:
        raise ValueError("segments: the shards do not come first, or have not one range of ordinals")


def _ranges(manifest: Manifest) -> Iterator[tuple[int, int, int, str]]:
    """[first, next), passages in it, and the name of a segment, for each range of ordinals."""
    base = manifest.base
    yield base[0].first_ordinal, base[0].next_ordinal, sum(one.counts.passages for one in base), base[0].name
    for segment in manifest.tail:
        yield segment.first_ordinal, segment.next_ordinal, segment.counts.passages, segment.name
