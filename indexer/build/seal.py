"""The end of a build: what a pass accepted, merged in key order from where it is, into the shard's sealed files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from indexer.build.accepted_ids import Staging
from indexer.build.intake import batched
from indexer.build.resume_log import WorkingFile
from indexer.reuse.origins import RisingReader, SealedSegment
from kalm_cache.generations.manifest import Counts
from kalm_cache.storage.record import Record, unpack_record
from kalm_cache.storage.store_writer import StoreWriter

SCAN = 4096  # keys looked up together
WORKING = 0  # the origin of what this build encoded; sealed segments are 1, 2, …


@dataclass(slots=True)
class _Tally:
    passages: int = 0
    tokens: int = 0
    pooled_states: int = 0
    truncated: int = 0
    payload_bytes: int = 0

    def add(self, record: Record) -> None:
        self.passages += 1
        self.tokens += record.tokens
        self.pooled_states += record.rows
        self.truncated += record.truncated
        self.payload_bytes += len(record.payload)

    def counts(self) -> Counts:
        return Counts(self.passages, self.tokens, self.pooled_states, self.truncated, self.payload_bytes)


def seal(
    folder: Path,
    working: WorkingFile,
    staging: Staging,
    segments: Sequence[SealedSegment],
    *,
    store_text: bool,
    next_ordinal: int,
) -> Counts:
    """Write `folder`'s sealed files from every passage that `staging` accepted, and count what is in them.

    What comes from a sealed segment is copied as bytes, after its checksums.

    Raises:
        StoreError: the disk is full or cannot be written, or what is to be copied was damaged meanwhile.
    """
    tally = _Tally()
    with ExitStack() as stack, StoreWriter(folder) as writer:
        readers = [tuple(map(RisingReader, stack.enter_context(segment.store.reading()))) for segment in segments]
        for key, origin in staging.origins():
            if origin == WORKING:
                meta, record = working.get(key)
                writer.add(key, record, meta, staging.frame(key) if store_text else b"")
                tally.add(record)
            else:
                states, passages = readers[origin - 1]
                common, state = states.entry(key)
                _, passage = passages.entry(key)
                writer.copy(common, state, passage)
                tally.add(unpack_record(common, state.fields, state.payload))
        writer.finish(staging.ordinals(), next_ordinal)
    return tally.counts()


def count_dropped(keys: Iterable[bytes], staging: Staging) -> int:
    """How many of these passages, stored by an interrupted run of this build, are no longer in its corpus."""
    return sum(staging.origins_of(some).count(None) for some in batched(keys, SCAN))
