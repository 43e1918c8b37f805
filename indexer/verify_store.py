"""Every entry of a shard's store, against its checksum, its counterparts and the manifest.

Also a program, `python -m indexer.verify_store GENERATION_FOLDER`: LMDB trusts its pages, so that reading a file which
is known to be damaged can end the process that does it.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kalm_cache.codec import codec_by_number
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.generation import Counts, Generation, Manifest, open_generation
from kalm_cache.passage import Passage
from kalm_cache.record import Record, unpack_record
from kalm_cache.store import PassageStore, key_of

Problem = tuple[str | None, str]  # doc id, where it is one passage's problem, and what is wrong


@dataclass(slots=True)
class Tally:
    """What a walk has met so far; records that do not unpack count in `entries` alone."""

    last_key: bytes = b""
    walked: bool = False
    entries: int = 0
    whole: int = 0
    tokens: int = 0
    pooled_states: int = 0
    truncated: int = 0
    payload_bytes: int = 0
    texts: int = 0
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, record: Record) -> None:
        """Count a whole record."""
        self.whole += 1
        self.tokens += record.tokens
        self.pooled_states += record.rows
        self.truncated += record.truncated
        self.payload_bytes += len(record.payload)

    def counts(self) -> Counts:
        """As the manifest keeps them."""
        return Counts(self.whole, self.tokens, self.pooled_states, self.truncated, self.payload_bytes)


def check_store(generation: Generation, tally: Tally) -> Iterator[Problem]:
    """Walk the whole store; problems come as they are met, and `tally` is filled meanwhile. Raises nothing."""
    try:
        with PassageStore(generation.shard / "passages.lmdb") as store:
            for check in (_check_records, _check_texts, _check_numbers):
                try:
                    yield from check(store, generation.manifest, tally)
                except StoreError as exc:  # this database ends here; the others may still be whole
                    yield None, str(exc)
    except StoreError as exc:
        yield None, str(exc)


def _check_records(store: PassageStore, manifest: Manifest, tally: Tally) -> Iterator[Problem]:
    for key, value in store.scan("records"):
        if key <= tally.last_key:  # also what ends the walk of pages that point back to each other
            raise StoreError(f"keys are out of order after {tally.last_key!r}: the pages are damaged")
        tally.last_key = key
        yield from _check_record(key, value, store, manifest, tally)
    tally.walked = True
    if tally.whole == tally.entries and tally.counts() != manifest.counts:
        yield None, f"the records add up to {tally.counts()}, the manifest says {manifest.counts}"


def _check_record(key: bytes, value: bytes, store: PassageStore, manifest: Manifest, tally: Tally) -> Iterator[Problem]:
    doc_id = key.decode("utf-8", "replace")
    tally.entries += 1
    try:
        record = unpack_record(key, value)
        tally.add(record)
        for problem in _record_problems(record, manifest):
            yield doc_id, problem
        for problem in _counterpart_problems(doc_id, record, store, manifest, tally):
            yield doc_id, problem
    except StoreError as exc:
        yield doc_id, str(exc)


def _record_problems(record: Record, manifest: Manifest) -> Iterator[str]:
    built = manifest.fingerprint
    rows = -(-record.tokens // built.chunk_size)  # ceil
    codec = codec_by_number(record.codec)
    if codec is None or codec.name != built.codec:
        yield f"its codec has number {record.codec}, the manifest says {built.codec}"
    if record.ratio != built.chunk_size:
        yield f"its pooling ratio is {record.ratio}, the manifest says {built.chunk_size}"
    if (record.rows, record.width) != (rows, manifest.width):
        yield f"its states are {record.rows} × {record.width}, expected {rows} × {manifest.width}"
    if record.tokens > built.max_length:
        yield f"it has {record.tokens} tokens, the manifest says at most {built.max_length}"
    if codec is not None and not np.isfinite(codec.decode(record.payload, record.rows, record.width)).all():
        yield "its states are not finite"


def _counterpart_problems(
    doc_id: str, record: Record, store: PassageStore, manifest: Manifest, tally: Tally
) -> Iterator[str]:
    (named,) = store.doc_ids([record.number])
    if named != doc_id:
        yield f"its number {record.number} leads to {named!r}"
    (text,) = store.texts([doc_id])
    tally.texts += text is not None
    if (text is not None) != manifest.fingerprint.store_text:
        yield "its text is missing" if text is None else "it has a text, in an index that keeps none"
    if text is not None and Passage(doc_id, text).content_hash() != record.content_hash:
        yield "its text is not the one that its record was made from"


def _check_texts(store: PassageStore, manifest: Manifest, tally: Tally) -> Iterator[Problem]:
    if store.count("texts") == store.count("records") * manifest.fingerprint.store_text:
        return  # each record has its own, so that there are no others
    for key, _ in store.scan("texts"):
        doc_id = key.decode("utf-8", "replace")
        if store.records([doc_id]) == [None]:
            yield doc_id, "a text without a record"


def _check_numbers(store: PassageStore, manifest: Manifest, tally: Tally) -> Iterator[Problem]:
    strays = store.count("numbers") != store.count("records")
    for number, doc_id in store.numbers():
        tally.numbers.append(number)
        try:
            (value,) = store.records([doc_id])
            if value is None:
                yield doc_id, f"number {number} leads to it, and it has no record"
            elif not tally.walked and key_of(doc_id) > tally.last_key:  # behind the page where the walk ended
                yield from _check_record(key_of(doc_id), value, store, manifest, tally)
            elif strays:
                yield from _stray(number, doc_id, value)
        except StoreError as exc:
            yield doc_id, str(exc)
    if len(tally.numbers) and tally.numbers[-1] >= store.next_number():
        yield None, f"number {tally.numbers[-1]} was given, but the next one to give is {store.next_number()}"


def _stray(number: int, doc_id: str, value: bytes) -> Iterator[Problem]:
    try:
        record = unpack_record(key_of(doc_id), value)
    except DamagedRecordError:
        return  # said already
    if record.number != number:
        yield doc_id, f"number {number} leads to it, its record says {record.number}"


def main() -> None:
    """One JSON line for every problem, flushed at once, and a last one with what was checked."""
    tally = Tally()
    for doc_id, problem in check_store(open_generation(Path(sys.argv[1])), tally):
        print(json.dumps({"doc_id": doc_id, "problem": problem}), flush=True)
    print(json.dumps({"records": tally.whole, "texts": tally.texts}))


if __name__ == "__main__":
    main()
