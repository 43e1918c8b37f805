"""Tombstones against the segments: each passage is shown once at most, and as many as its manifest says."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import numpy as np

from indexer.build.intake import batched
from indexer.integrity.damage import Damage
from kalm_cache.errors import DamagedRecordError, KalmCacheError
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import MANIFEST, NO_COUNTS, Counts
from kalm_cache.generations.segments import LiveSegment, SegmentSet
from kalm_cache.generations.tombstones import TOMBSTONES_FILE
from kalm_cache.storage.passage_store import PassageMeta, doc_id_of
from kalm_cache.storage.record import Record

SCAN = 2048


def check_tombstones(generation: Generation, checked: Counter[str], *, is_valid: bool) -> Iterator[Damage]:
    """`is_valid`: nothing else was found damaged, so that segments can be read and counts compared exactly."""
    try:
        tombstones = generation.tombstones()
    except KalmCacheError as exc:
        yield Damage(TOMBSTONES_FILE, None, str(exc))
        return
    if len(tombstones):
        checked["hidden"] += len(tombstones)
    if bool((np.diff(tombstones.ordinals) <= 0).any()):
        yield Damage(TOMBSTONES_FILE, None, "its numbers do not rise")
    if not is_valid:
        return
    counts = NO_COUNTS
    with SegmentSet(generation) as segments:
        for segment in segments.segments:
            counts += segment.part.manifest.counts
            for problem, gone in _check_segment(segment):
                counts -= gone
                if problem is not None:
                    yield Damage(TOMBSTONES_FILE, None, problem)
        if sum(len(segment.tombstone_ordinals) for segment in segments.segments) != len(tombstones):
            yield Damage(TOMBSTONES_FILE, None, "it hides numbers that no segment has")
        yield from _shown_twice(segments)
    said = generation.manifest.counts
    if counts.passages != said.passages or counts != said:
        yield Damage(MANIFEST, None, f"what is shown adds up to {counts}, it says {said}")


def _check_segment(segment: LiveSegment) -> Iterator[tuple[str | None, Counts]]:
    """For each hidden passage of a segment: what is wrong, if anything, and what it counts."""
    own = segment.part.tombstones().between(*_range(segment))
    for pairs in batched(zip(own.ordinals.tolist(), own.keys, strict=True), SCAN):
        doc_ids = [doc_id_of(key) for _, key in pairs]
        with segment.store.snapshot() as snapshot:
            for (ordinal, _), doc_id, meta, record in zip(
                pairs, doc_ids, segment.store.metas(doc_ids), snapshot.records(doc_ids), strict=True
            ):
                yield _problem(ordinal, doc_id, meta), _counts(record)


def _range(segment: LiveSegment) -> tuple[int, int]:
    (receipt,) = segment.part.manifest.segments
    return receipt.first_ordinal, receipt.next_ordinal


def _problem(ordinal: int, doc_id: str, meta: PassageMeta | DamagedRecordError | None) -> str | None:
    if isinstance(meta, PassageMeta) and meta.ordinal == ordinal:
        return None
    return f"it hides number {ordinal} as {doc_id!r}, and the segment does not have that"


def _counts(record: Record | DamagedRecordError | None) -> Counts:
    if not isinstance(record, Record):
        return Counts(1, 0, 0, 0, 0)
    return Counts(1, record.tokens, record.rows, int(record.truncated), len(record.payload))


def _shown_twice(segments: SegmentSet) -> Iterator[Damage]:
    if len(segments.segments) < 2:
        return
    last = b""
    for key in heapq.merge(*(segment.keys() for segment in segments.segments)):
        if key == last:
            yield Damage(TOMBSTONES_FILE, doc_id_of(key), "two segments show it")
        last = key
