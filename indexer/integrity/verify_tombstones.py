"""Tombstones and shards against the segments: each passage is shown once at most, in its shard, and as many as the
manifest says.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import numpy as np

from indexer.build.batching import batched
from indexer.integrity.damage import IndexDamage
from kalm_cache.errors import KalmCacheError
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import MANIFEST, NO_COUNTS, RecordTally
from kalm_cache.generations.segments import LiveSegment, SegmentSet
from kalm_cache.generations.tombstones import TOMBSTONES_FILE
from kalm_cache.storage.passage_store import PassageMeta, doc_id_of

SCAN = 2048


def check_tombstones(generation: Generation, checked: Counter[str], *, is_valid: bool) -> Iterator[IndexDamage]:
    """`is_valid`: nothing else is damaged, so that segments can be read and counts compared exactly."""
    try:
        tombstones = generation.tombstones()
    except KalmCacheError as exc:
        yield IndexDamage(TOMBSTONES_FILE, None, str(exc))
        return
    if len(tombstones):
        checked["tombstones"] += len(tombstones)
    if bool((np.diff(tombstones.ordinals) <= 0).any()):
        yield IndexDamage(TOMBSTONES_FILE, None, "its ordinals do not rise")
    if not is_valid:
        return
    stored, gone = NO_COUNTS, RecordTally()
    with SegmentSet(generation) as segments:
        for segment in segments.segments:
            stored += segment.part.manifest.counts
            for problem in _check_segment(segment, gone):
                yield IndexDamage(TOMBSTONES_FILE, None, problem)
        if sum(len(segment.tombstone_ordinals) for segment in segments.segments) != len(tombstones):
            yield IndexDamage(TOMBSTONES_FILE, None, "it names ordinals that no segment has")
        yield from _shown_twice(segments)
        yield from _misplaced(segments)
    shown, stated = stored - gone.counts(), generation.manifest.counts
    if shown != stated:
        yield IndexDamage(MANIFEST, None, f"what is shown adds up to {shown}, it says {stated}")


def _check_segment(segment: LiveSegment, gone: RecordTally) -> Iterator[str]:
    """What is wrong with tombstones of a segment; the records that they name are counted in `gone`."""
    (receipt,) = segment.part.manifest.segments
    tombstones = segment.part.tombstones_of(receipt, segment.part.tombstones())
    for pairs in batched(zip(tombstones.ordinals.tolist(), tombstones.keys, strict=True), SCAN):
        doc_ids = [doc_id_of(key) for _, key in pairs]
        with segment.store.snapshot() as snapshot:
            for (ordinal, _), doc_id, meta, record in zip(
                pairs, doc_ids, segment.store.metas(doc_ids), snapshot.records(doc_ids), strict=True
            ):
                gone.add(record)
                if not isinstance(meta, PassageMeta) or meta.ordinal != ordinal:
                    yield f"it names ordinal {ordinal} as {doc_id!r}, and the segment does not have that"


def _shown_twice(segments: SegmentSet) -> Iterator[IndexDamage]:
    if len(segments.segments) < 2:
        return
    last = b""
    for key in heapq.merge(*(segment.keys() for segment in segments.segments)):
        if key == last:
            yield IndexDamage(TOMBSTONES_FILE, doc_id_of(key), "two segments show it")
        last = key


def _misplaced(segments: SegmentSet) -> Iterator[IndexDamage]:
    """Passages that lie in another shard than their ids say: nobody would find them by id."""
    sharding = segments.generation.manifest.sharding
    for segment in segments.segments if sharding is not None else ():
        if sharding is None or segment.shard is None:
            continue
        for key in segment.store.keys():  # noqa: SIM118 (not a dict)
            if sharding.shard_of(key) != segment.shard:
                problem = f"lies in shard {segment.shard}, its id says {sharding.shard_of(key)}"
                yield IndexDamage(f"shards/{segment.part.segment_name}", doc_id_of(key), problem)
