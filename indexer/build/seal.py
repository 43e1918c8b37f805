"""The end of a build: accepted passages, merged in key order from their origins, into the segment's sealed files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from indexer.build.unfinished.accepted_passages import AcceptedPassages, Origins
from indexer.reuse.origins import RisingReader
from kalm_cache.generations.manifest import Counts, RecordTally
from kalm_cache.storage.record import unpack_record
from kalm_cache.storage.store_writer import StoreWriter


def seal(folder: Path, accepted: AcceptedPassages, origins: Origins, *, store_text: bool, end: int) -> Counts:
    """Write `folder`'s sealed files from every passage that was accepted, and count what is in them.

    What comes from a sealed segment is copied as bytes, after its checksums.
    `end`: the next ordinal to give, above all of them.

    Raises:
        StoreError: the disk is full or cannot be written, or what is to be copied was damaged meanwhile.
    """
    tally = RecordTally()
    with ExitStack() as stack, StoreWriter(folder) as writer:
        readers = [tuple(map(RisingReader, stack.enter_context(segment.store.reading()))) for segment in origins.sealed]
        for key, origin in accepted.origins():
            if origins.segment(origin) is None:
                meta, record = origins.resume_log.get(key)
                writer.add(key, record, meta, accepted.frame(key) if store_text else b"")
                tally.add(record)
            else:
                states, passages = readers[origin - 1]
                common, state = states.entry(key)
                _, passage = passages.entry(key)
                writer.copy(common, state, passage)
                tally.add(unpack_record(common, state.fields, state.payload))
        writer.finish(accepted.ordinals(), end)
    return tally.counts()
