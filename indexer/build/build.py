"""`build_segment`: plan, compute and commit in a loop, then seal. `publish_base`: segments as a new generation.

While a segment is built, what is encoded goes into the resume log. When the corpus has been read, the segment is
sealed: everything that was accepted is merged, in order of keys, into the files that are published.
"""

from __future__ import annotations

import heapq
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.batching import batched
from indexer.build.commit import Commit
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import FOLDER, SCAN, FirstStageBuild
from indexer.build.overlap import computed_in_order
from indexer.build.plan import BatchPlanner, Reject
from indexer.build.seal import seal
from indexer.build.spec import BuildSpec, NewBase
from indexer.build.unfinished.accepted_passages import ACCEPTED_FILE, AcceptedPassages, Origins
from indexer.build.unfinished.resume_log import ORDINALS_FILE, RESUME_LOG_FILE, Reservations, ResumeLog
from indexer.corpus import CorpusLine, RejectedLine
from indexer.reuse.origins import SealedSegment
from indexer.reuse.reusable_segments import require_keepable
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.generation import Generation, high_water_marks
from kalm_cache.generations.manifest import NO_COUNTS, Counts, FileReceipt, Manifest, SegmentReceipt
from kalm_cache.generations.publish import name_for, now, publish, receipts
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.metadata.column_writer import write_columns
from kalm_cache.storage.durable import rename_durably
from kalm_cache.storage.passage_store import SEAL_FILE, PassageStore
from kalm_cache.storage.store_writer import unseal

logger = logging.getLogger(__name__)
EARLIER = ".earlier"  # suffix of the folder of a segment that was finished and not published
KEEPING = ("gc", "fold", "repair")  # operations that drop nothing which is shown and undamaged
MEASURED = 64  # passages encoded, at least, for a rate that says anything


@dataclass(frozen=True, slots=True)
class BuiltSegment:
    """A sealed segment: what is in it, and how it came about. `started`: by `time.perf_counter`."""

    folder: Path
    stored: Counts
    next_ordinal: int
    counts: BuildCounts
    started: float


def build_segment(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    folder: Path,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> BuiltSegment:
    """Fill `folder` with a sealed segment and `first_stage/`; run again after an interruption, it goes on.

    Args:
        spec: what it is built with.
        lines: the corpus from its beginning, read once.
        folder: the segment's folder; whatever an interrupted run left in it is verified and used.
        on_reject: called for every line that is left out, duplicates included.
        on_progress: called after every batch with the counts so far.

    Raises:
        UsageError: passages should be kept without their texts, and something could only be made of these.
        StoreError: the disk is full or cannot be written; what is stored stays.
    """
    started, counts = time.perf_counter(), BuildCounts()
    if spec.keep_missing:
        require_keepable(spec.parent, spec.sources, spec.fingerprint)
    earlier = _set_aside(folder)
    with ExitStack() as stack:
        origins = _open_origins(spec, folder, earlier, stack)
        accepted = stack.enter_context(AcceptedPassages(folder / ACCEPTED_FILE))
        own = stack.enter_context(Reservations(folder / ORDINALS_FILE, _first_ordinal(spec, origins)))
        ordinals = spec.ordinals or own
        commit = Commit(spec, accepted, origins, counts, ordinals)
        batches = BatchPlanner(spec, accepted, origins, counts, ordinals).batches(lines, on_reject)
        with closing(computed_in_order(batches, spec.models, counts.stage_seconds)) as computed:
            for batch in computed:
                with _timed(counts, "commit"):
                    commit.write(batch)
                on_progress(counts)
        counts.deleted = _count_left_behind(accepted, origins)
        on_progress(counts)
        with _timed(counts, "seal"):
            stored = seal(folder, accepted, origins, store_text=spec.fingerprint.store_text, end=ordinals.next)
            _write_metadata(spec, folder, accepted)
        with _timed(counts, "first stage"):
            FirstStageBuild(folder, accepted, origins).build(spec, commit.postings)
    counts.stage_bytes.update(_bytes_of(folder))
    _drop_leftovers(folder)
    return BuiltSegment(folder, stored, ordinals.next, counts, started)


def _write_metadata(spec: BuildSpec, folder: Path, accepted: AcceptedPassages) -> None:
    """The columns of a segment; none where no metadata is kept."""
    if spec.columns or spec.template.metadata:
        write_columns(folder, spec.columns, accepted.metadata())


@contextmanager
def _timed(counts: BuildCounts, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    counts.stage_seconds[stage] += time.perf_counter() - started


def _bytes_of(folder: Path) -> dict[str, int]:
    """What the stages that write have on disk."""
    sizes = {path: path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()}
    first_stage = sum(size for path, size in sizes.items() if FOLDER in path.parts)
    commit = sum(sizes.get(folder / name, 0) for name in (RESUME_LOG_FILE, ORDINALS_FILE, ACCEPTED_FILE))
    return {"commit": commit, "seal": sum(sizes.values()) - first_stage - commit, "first stage": first_stage}


def _open_origins(spec: BuildSpec, folder: Path, earlier: Path | None, stack: ExitStack) -> Origins:
    resume_log = stack.enter_context(ResumeLog(folder / RESUME_LOG_FILE))
    finished = [] if earlier is None else [SealedSegment(stack.enter_context(PassageStore(earlier)), vectors=None)]
    return Origins(resume_log, [*finished, *spec.sources.copied], finished_before=len(finished))


def _first_ordinal(spec: BuildSpec, origins: Origins) -> int:
    """The first ordinal that no passage has had: not in the index, in this build, or in what it takes passages from."""
    stores = [segment.store for segment in origins.sealed] + [segment.store for segment in spec.sources.recoded]
    given = high_water_marks(spec.index).next_ordinal
    return max(given, origins.resume_log.next_ordinal(), *(store.next_ordinal() for store in stores))


def _count_left_behind(accepted: AcceptedPassages, origins: Origins) -> int:
    """Passages that interrupted runs of this build had encoded, and that are no longer in its corpus."""
    return sum(
        accepted.origins_of(keys).count(None) for stored in origins.resumed() for keys in batched(stored.keys(), SCAN)
    )


def _set_aside(folder: Path) -> Path | None:
    """Make the folder ready for a pass, and return that of a segment which an earlier run finished, if any.

    A segment that was sealed and never published is moved aside, and this run copies from it.
    """
    earlier = folder.with_name(folder.name + EARLIER)
    if (folder / SEAL_FILE).exists() and not (folder / RESUME_LOG_FILE).exists():
        shutil.rmtree(earlier, ignore_errors=True)  # the finished one holds all that it held
        rename_durably(folder, earlier)
    folder.mkdir(parents=True, exist_ok=True)
    unseal(folder)
    return earlier if earlier.exists() else None


def _drop_leftovers(folder: Path) -> None:
    for name in (RESUME_LOG_FILE, f"{RESUME_LOG_FILE}-lock", ORDINALS_FILE, ACCEPTED_FILE):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder.with_name(folder.name + EARLIER), ignore_errors=True)


def publish_base(
    base: NewBase, building: Path, segments: Sequence[BuiltSegment], files: dict[str, FileReceipt] | None = None
) -> Generation:
    """Publish a build of one segment, or of every shard by number.

    `files`: receipts, where they are known. Raises `OSError` when the disk is full or cannot be written.
    """
    deleted = _count_deleted(base, [segment.folder for segment in segments])
    name = name_for(base.index, building)
    return publish(base.index, building, base_manifest(base, name, segments, files or receipts(building), deleted))


def base_manifest(
    base: NewBase, name: str, segments: Sequence[BuiltSegment], files: dict[str, FileReceipt], deleted: int
) -> Manifest:
    """The manifest of a generation `name` of these segments. `deleted`: passages that its parent alone shows."""
    next_ordinal = max(segment.next_ordinal for segment in segments)
    return replace(
        base.template,
        generation=name,
        created_at=now(),
        counts=sum((segment.stored for segment in segments), NO_COUNTS),
        files=files,
        parent=None if base.parent is None else base.parent.name,
        segments=[
            SegmentReceipt(segment.folder.name, segment.stored, 0, next_ordinal, _shard_of(base, number))
            for number, segment in enumerate(segments)
        ],
        next_ordinal=next_ordinal,
        operation=base.operation,
        deleted=deleted,
        passages_per_second=_rate(base, segments),
        columns=dict(base.columns),
    )


def _shard_of(base: NewBase, number: int) -> int | None:
    return None if base.template.sharding is None else number


def _rate(base: NewBase, segments: Sequence[BuiltSegment]) -> float | None:
    """Passages a second of a build that encoded everything; else the parent's, if it was of the same model."""
    counts = BuildCounts.total(segment.counts for segment in segments)
    if counts.encoded >= MEASURED and counts.encoded == counts.done:
        return round(counts.encoded / (time.perf_counter() - min(segment.started for segment in segments)), 2)
    parent = base.parent
    if parent is None or parent.manifest.fingerprint.model != base.fingerprint.model:
        return None
    return parent.manifest.passages_per_second


def _count_deleted(base: NewBase, folders: Sequence[Path]) -> int:
    """Passages that the parent shows and no segment has, in no version.

    None of an operation that keeps all: what is only damaged in the parent was not deleted. Where the parent cannot be
    read, as many as it says that it has: gc then keeps no generation behind it.
    """
    parent = base.parent
    if parent is None or base.operation in KEEPING:
        return 0
    try:
        with SegmentSet(parent) as before, ExitStack() as stack:
            after = [stack.enter_context(PassageStore(folder)) for folder in folders]
            return _count_missing(before.keys(), heapq.merge(*(store.keys() for store in after)))
    except KalmCacheError as exc:
        logger.warning("generation %s cannot be read: %s", parent.name, exc)
        return parent.manifest.counts.passages


def _count_missing(before: Iterator[bytes], after: Iterator[bytes]) -> int:
    """How many of the keys `before` are not in `after`; both rise."""
    missing, here = 0, next(after, None)
    for key in before:
        while here is not None and here < key:
            here = next(after, None)
        missing += here != key
    return missing
