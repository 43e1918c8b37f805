"""`add` and `delete`: the live generation with one small segment or some tombstones more. Costs what changes.

What is stored is linked, not copied. Where small segments have become many, they are folded (see fold.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.batching import batched
from indexer.build.build import BuiltSegment, build_segment
from indexer.build.counts import BuildCounts
from indexer.build.plan import WINDOW, Reject, duplicate
from indexer.build.spec import BuildSpec
from indexer.change.changed_metadata import ChangedMetadata
from indexer.change.publish_on_parent import drop_other_segments, publish_on_parent
from indexer.corpus import CorpusLine, RejectedLine, TypedMetadata, UnusedFields
from indexer.models import Encoders, batch_tokens_of
from indexer.reuse.source_first_stage import base_statistics
from kalm_cache.errors import UnknownIdError
from kalm_cache.generations.build_folders import begin, drop, locked_live_generation, resume_or_begin
from kalm_cache.generations.file_digests import METADATA, require_valid_arrays
from kalm_cache.generations.fingerprint import require_equal
from kalm_cache.generations.generation import (
    BUILDING,
    Generation,
    require_valid,
    segment_folder,
)
from kalm_cache.generations.manifest import Counts, RecordTally, SegmentReceipt
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.generations.tombstones import Tombstones
from kalm_cache.index.stored_metadata import StoredMetadata
from kalm_cache.metadata import Schema
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import PassageMeta, PassageStore, doc_id_of, key_of, require_undamaged
from kalm_cache.storage.record import Record


@dataclass(frozen=True, slots=True)
class AddReport:
    """What was added. `added` ids are new, `replaced` ones had another text; `unchanged` ones were left as they are.

    `updated` ones have the same text and other metadata: nothing of them is encoded.

    `passages`, `segments` and `generation` are those of the live index now; the generation is a new one if anything was
    added. `new_bytes`: of the segment that was made, before it was folded with others. `unused_fields`: how many lines
    of the corpus have each field that is no part of a passage.
    """

    index: str
    generation: str
    passages: int
    added: int
    replaced: int
    updated: int
    unchanged: int
    rejected: int
    encoded: int
    resumed: int
    new_bytes: int
    segments: int
    seconds: float
    unused_fields: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What was deleted, and which ids the index did not have."""

    index: str
    generation: str
    passages: int
    deleted: int
    unknown: list[str]
    seconds: float


def add_passages(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> AddReport:
    """Add passages to the live generation, or replace them where their texts changed; all of them at once or none.

    Interrupted, it goes on where it stopped when called again. `settings` and `encoders` are the index's own: see
    `load_encoders_of`.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        IndexMismatchError: the encoders are not those of the index.
        StoreError: another operation's unfinished build is in the way, or the disk is full or cannot be written.
    """
    started = time.perf_counter()
    with locked_live_generation(index) as stored:
        live = stored.updated(encoders.checkpoint)
        _require_addable(index, live, encoders)
        building = resume_or_begin(index, "add", encoders.fingerprint, checkpoint=encoders.checkpoint)
        name = _segment_name(building, live)
        drop_other_segments(building, name)
        metadata = TypedMetadata(live.manifest.metadata, live.manifest.columns)
        spec, folder = _spec(index, live, settings, encoders, metadata.schema), segment_folder(building, name)
        with SegmentSet(live) as segments:
            changes = _Changes(segments, metadata, on_reject)
            segment = build_segment(spec, changes.of(lines), folder, on_reject=changes.reject, on_progress=on_progress)
            new_bytes = _bytes_below(segment.folder) if segment.stored.passages else 0
            live, replaced = _publish_added(index, building, live, segments, segment, changes.metadata)
    return _report_added(index, live, segment, changes, replaced, new_bytes, time.perf_counter() - started)


def _report_added(
    index: Path,
    live: Generation,
    segment: BuiltSegment,
    changes: _Changes,
    replaced: int,
    new_bytes: int,
    seconds: float,
) -> AddReport:
    return AddReport(
        index=str(index),
        generation=live.name,
        passages=live.manifest.counts.passages,
        added=segment.stored.passages - replaced,
        replaced=replaced,
        updated=len(changes.metadata.values),
        unchanged=changes.unchanged,
        rejected=changes.rejected,
        encoded=segment.counts.encoded,
        resumed=segment.counts.resumed,
        new_bytes=new_bytes,
        segments=len(live.manifest.segments),
        seconds=round(seconds, 3),
        unused_fields=changes.unused.counts(),
    )


def _segment_name(building: Path, live: Generation) -> str:
    """That of the build, which no segment beside it has: shards have 5 digits, and what is added to them 6."""
    digits = 5 if live.manifest.sharding is None else 6
    return f"{int(building.name.removesuffix(BUILDING)):0{digits}d}"


def _require_addable(index: Path, live: Generation, encoders: Encoders) -> None:
    require_valid(live)
    require_valid_arrays(live, METADATA)
    for segment in live.manifest.base:
        require_valid_arrays(live, f"shards/{segment.name}/first_stage/bm25/")  # its statistics are used
    way_out = "Run: kalm-cache reindex CORPUS, to change them."
    require_equal(live.manifest.fingerprint, encoders.fingerprint, f"{index}", way_out)


def _spec(index: Path, live: Generation, settings: Settings, encoders: Encoders, columns: Schema) -> BuildSpec:
    return BuildSpec(
        index=index,
        operation="add",
        template=replace(live.manifest, dense_index="auto"),  # what suits the base may not suit so few
        parent=live,
        models=encoders.build_models,
        batch_tokens=batch_tokens_of(settings, encoders.passage_side),
        statistics_of=base_statistics(live),
        columns=columns,
    )


def delete_passages(doc_ids: Sequence[str], index: Path) -> DeleteReport:
    """Show passages no more from the next moment on; `gc` removes their bytes. All of the known ones at once, or none.

    Raises:
        IndexNotFoundError: nothing has been published here.
        IndexLockedError: another job is changing the index.
        UnknownIdError: the index has none of them.
        StoreError: the disk is full or cannot be written.
    """
    started = time.perf_counter()
    with locked_live_generation(index) as live:
        require_valid(live)
        with SegmentSet(live) as segments:
            distinct = list(dict.fromkeys(doc_ids))
            gone = ShownPassages.of(distinct, segments)
            unknown = [doc_id for doc_id in distinct if doc_id not in gone.ordinals]
            if not gone.ordinals:
                raise UnknownIdError(unknown)
        tombstones = gone.added_to(live.tombstones(), deleted=True)
        counts = live.manifest.counts - gone.counts
        building = begin(index, "delete")
        live = publish_on_parent(index, building, "delete", live, tombstones, counts, deleted=len(gone.ordinals))
    return DeleteReport(
        index=str(index),
        generation=live.name,
        passages=live.manifest.counts.passages,
        deleted=len(gone.ordinals),
        unknown=unknown,
        seconds=round(time.perf_counter() - started, 3),
    )


class _Changes:
    """The lines of a file that change something, each id once; counts the others."""

    def __init__(self, segments: SegmentSet, typed: TypedMetadata, on_reject: Reject) -> None:
        self._segments, self._typed, self._on_reject = segments, typed, on_reject
        self._stored = StoredMetadata(segments)
        self.metadata = ChangedMetadata(typed.schema)
        self._first: dict[str, str] = {}  # doc id -> where it was met first
        self.unchanged = self.rejected = 0
        self.unused = UnusedFields()

    def reject(self, line: RejectedLine) -> None:
        """Count a line that cannot be used, and hand it on."""
        self.rejected += 1
        self._on_reject(line)

    def of(self, lines: Iterable[CorpusLine | RejectedLine]) -> Iterator[CorpusLine | RejectedLine]:
        """Lines for `build_segment`."""
        for window in batched(self._typed.watch(self.unused.watch(lines)), WINDOW):
            doc_ids = [line.passage.doc_id for line in window if isinstance(line, CorpusLine)]
            stored = dict(zip(doc_ids, _valid_metas(self._segments, doc_ids), strict=True))
            metadata = dict(zip(doc_ids, self._stored.values(doc_ids, list(self._stored.schema)), strict=True))
            for line in window:
                if isinstance(line, RejectedLine):
                    yield line
                    continue
                passage = line.passage
                first = self._first.setdefault(passage.doc_id, line.location)
                if first != line.location:
                    yield duplicate(line, first)
                    continue
                meta = stored[passage.doc_id]
                if meta is None or meta.content_hash != passage.content_hash():
                    yield line
                elif line.metadata != metadata[passage.doc_id]:
                    self.metadata.values[passage.doc_id] = line.metadata
                else:
                    self.unchanged += 1


def _valid_metas(segments: SegmentSet, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
    """Of what is stored undamaged; what is damaged counts as not there, so that adding it again repairs it."""
    with segments.snapshot() as snapshot:
        valid = [isinstance(record, Record) for record in snapshot.records(doc_ids)]
    metas = zip(segments.metas(doc_ids), valid, strict=True)
    return [meta if is_valid and isinstance(meta, PassageMeta) else None for meta, is_valid in metas]


@dataclass(frozen=True, slots=True)
class ShownPassages:
    """Passages that a new generation does not show: their ordinals by id, and what they count."""

    ordinals: dict[str, int]
    counts: Counts

    @staticmethod
    def of(doc_ids: Sequence[str], segments: SegmentSet) -> ShownPassages:
        """Those of `doc_ids` that are shown now. Raises `StoreError` for one whose ordinal cannot be read."""
        ordinals: dict[str, int] = {}
        tally = RecordTally()
        for some in batched(doc_ids, WINDOW):
            with segments.snapshot() as snapshot:
                for doc_id, meta, record in zip(some, segments.metas(some), snapshot.records(some), strict=True):
                    if meta is not None:
                        ordinals[doc_id] = require_undamaged(meta).ordinal
                        tally.add(record)
        return ShownPassages(ordinals, tally.counts())

    def added_to(self, tombstones: Tombstones, *, deleted: bool) -> Tombstones:
        """The tombstones with these: of passages that were deleted, or else replaced."""
        return tombstones.adding([(ordinal, key_of(doc_id), deleted) for doc_id, ordinal in self.ordinals.items()])


def _publish_added(
    index: Path,
    building: Path,
    live: Generation,
    segments: SegmentSet,
    segment: BuiltSegment,
    metadata: ChangedMetadata,
) -> tuple[Generation, int]:
    """The live generation now, and how many passages of the one before it replaces; the same if nothing was added."""
    if not segment.stored.passages and not metadata.values:
        drop(building)
        return live, 0
    if not segment.stored.passages:
        counts, tombstones = live.manifest.counts, live.tombstones()
        return publish_on_parent(index, building, "add", live, tombstones, counts, metadata=metadata), 0
    with PassageStore(segment.folder) as store:
        doc_ids = [doc_id_of(key) for key in store.keys()]  # noqa: SIM118 (not a dict)
        first, _ = next(store.ordinals())
    receipt = SegmentReceipt(segment.folder.name, segment.stored, first, segment.next_ordinal)
    replaced = ShownPassages.of(doc_ids, segments)
    tombstones = replaced.added_to(live.tombstones(), deleted=False)
    shown = live.manifest.counts + segment.stored - replaced.counts
    live = publish_on_parent(index, building, "add", live, tombstones, shown, added=receipt, metadata=metadata)
    return live, len(replaced.ordinals)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
