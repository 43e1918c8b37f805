"""What is valid in a damaged segment, found without the pages that lead to it, as a new sealed segment.

Blocks say themselves what they are, and each entry is under its own checksum, so that a file is searched for their
magic and nothing in it is trusted: no damage can end the process, and a page that leads nowhere costs nothing.
"""

from __future__ import annotations

import heapq
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from kalm_cache.errors import DamagedRecordError
from kalm_cache.generations.generation import Generation
from kalm_cache.storage.checksummed_block import Block, Entry, Kind
from kalm_cache.storage.passage_store import (
    ORDINALS,
    PASSAGES,
    PASSAGES_FILE,
    STATES_FILE,
    PassageMeta,
    doc_id_of,
    meta_of,
    unpack_text,
)
from kalm_cache.storage.record import STATES
from kalm_cache.storage.store_writer import StoreWriter


@dataclass(slots=True)
class Salvaged:
    """What became of a segment's passages; `texts` and `metas` are of those that are to be encoded again."""

    valid: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    metas: dict[str, PassageMeta] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    nameless: int = 0


class _Valid(NamedTuple):
    common: bytes
    entry: Entry


def salvage(part: Generation, tombstones: frozenset[bytes], folder: Path) -> Salvaged:
    """Write a sealed segment into `folder` of every passage of `part` that is valid and has no tombstone.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    salvaged = Salvaged()
    ordinals: list[tuple[int, bytes]] = []
    folder.mkdir(parents=True, exist_ok=True)
    (receipt,) = part.manifest.segments
    with StoreWriter(folder) as writer:
        for key, state, passage in _joined(part.segment):
            if key in tombstones:
                continue
            if state is not None and passage is not None:
                writer.copy(state.common, state.entry, passage.entry)
                ordinals.append((meta_of(passage.entry).ordinal, key))
                salvaged.valid += 1
            elif passage is not None and (text := _text(passage.entry)) is not None:
                salvaged.texts[doc_id_of(key)] = text
                salvaged.metas[doc_id_of(key)] = meta_of(passage.entry)
            else:
                salvaged.lost.append(doc_id_of(key))
        writer.finish(sorted(ordinals), receipt.next_ordinal)
    named = salvaged.valid + len(salvaged.texts) + len(salvaged.lost)
    salvaged.nameless = max(receipt.counts.passages - len(tombstones) - named, 0)
    return salvaged


def _joined(segment: Path) -> Iterator[tuple[bytes, _Valid | None, _Valid | None]]:
    """Every key that is met anywhere, rising: its record and its passage, where these are valid."""
    states = ((key, "state", valid) for key, valid in valid_entries(segment / STATES_FILE, STATES))
    passages = ((key, "passage", valid) for key, valid in valid_entries(segment / PASSAGES_FILE, PASSAGES))
    by_ordinal = (bytes(valid.entry.payload) for _, valid in valid_entries(segment / PASSAGES_FILE, ORDINALS))
    names = ((key, "name", None) for key in sorted(by_ordinal))
    merged = heapq.merge(states, passages, names, key=lambda item: item[0])
    for key, group in groupby(merged, key=lambda item: item[0]):
        by_kind = {kind: valid for _, kind, valid in group}
        yield key, by_kind.get("state"), by_kind.get("passage")


def valid_entries(path: Path, kind: Kind) -> Iterator[tuple[bytes, _Valid]]:
    """The entries of one kind in a file that have the right checksum, in order of keys, each key once."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            view = memoryview(content)
            try:
                yield from _entries_at(view, sorted(_blocks(content, view, kind)), kind)
            finally:
                view.release()
    except (FileNotFoundError, ValueError):  # an empty file cannot be mapped
        return


def _blocks(content: mmap.mmap, view: memoryview, kind: Kind) -> Iterator[tuple[bytes, int]]:
    """First valid key and offset of everything that may be a block."""
    at = content.find(kind.magic)
    while at >= 0:
        first = next(_entries(view[at:], kind), None)
        if first is not None:
            yield first[0], at
        at = content.find(kind.magic, at + 1)


def _entries_at(view: memoryview, blocks: list[tuple[bytes, int]], kind: Kind) -> Iterator[tuple[bytes, _Valid]]:
    last: bytes | None = None
    for _, at in blocks:
        for key, valid in _entries(view[at:], kind):
            if last is None or key > last:
                last = key
                yield key, valid


def _entries(view: memoryview, kind: Kind) -> Iterator[tuple[bytes, _Valid]]:
    try:
        block = Block(kind, view)
    except (DamagedRecordError, struct.error):
        return
    for i in range(len(block)):
        try:
            entry = block.valid_entry(i)
        except (DamagedRecordError, struct.error):
            continue
        yield entry.key, _Valid(block.common, entry._replace(payload=memoryview(bytes(entry.payload))))


def _text(entry: Entry) -> str | None:
    if not entry.payload:
        return None
    try:
        return unpack_text(entry.payload)
    except DamagedRecordError:
        return None
