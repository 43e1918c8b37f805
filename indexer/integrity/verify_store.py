"""Every entry of a segment's store, against its checksum, its counterparts and the manifest.

Run as a subprocess, `python -m indexer.integrity.verify_store GENERATION_FOLDER SEGMENT`: the files are mapped, a page
that the disk cannot read kills the process that touches it (SIGBUS), and so only the child dies.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kalm_cache.codec import codec_by_number, decode, get_codec
from kalm_cache.errors import DamagedRecordError, KalmCacheError, StoreError
from kalm_cache.generations.generation import Generation, open_generation
from kalm_cache.generations.manifest import Manifest, RecordTally
from kalm_cache.passage import Passage
from kalm_cache.storage.block_file import BlockFile
from kalm_cache.storage.checksummed_block import Block, Entry
from kalm_cache.storage.passage_store import (
    ORDINALS,
    PASSAGES,
    PASSAGES_DATABASES,
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_DATABASES,
    STATES_FILE,
    Seal,
    doc_id_of,
    meta_of,
    ordinal_key,
    ordinal_of,
    read_seal,
    unpack_text,
)
from kalm_cache.storage.record import STATES, unpack_record

STORE_FILES = (STATES_FILE, PASSAGES_FILE, SEAL_FILE)


class Problem(NamedTuple):
    """What is wrong, in which file of the segment, and with which passage, where it is one's."""

    file: str
    doc_id: str | None
    problem: str


@dataclass(slots=True)
class StoreTally(RecordTally):
    """The valid records, texts and ordinals that a walk has met so far."""

    texts: int = 0
    ordinals: array[int] = field(default_factory=lambda: array("q"))


class WalkedEntry(NamedTuple):
    """An entry that a walk met; `entry` is `None` where it is damaged, which has been reported then."""

    key: bytes
    common: bytes
    entry: Entry | None


def check_store(generation: Generation, tally: StoreTally) -> Iterator[Problem]:
    """Walk the whole store; problems come as they are met, and `tally` is filled meanwhile. Raises nothing."""
    seal: Seal | None = None
    try:
        seal = read_seal(generation.segment)
    except StoreError as exc:
        yield Problem(SEAL_FILE, None, str(exc))
    with ExitStack() as stack:
        files: dict[str, BlockFile] = {}
        for name, databases in ((STATES_FILE, STATES_DATABASES), (PASSAGES_FILE, PASSAGES_DATABASES)):
            try:
                files[name] = BlockFile(generation.segment / name, databases, tree=None)
            except StoreError as exc:
                yield Problem(name, None, str(exc))
                continue
            stack.callback(files[name].close)
            problems = files[name].problems
            if not problems and seal is not None and files[name].digest != seal.trees.get(name):
                problems = ["its pages are not those that were sealed"]
            for problem in problems:  # reported, and read on as far as it goes
                yield Problem(name, None, problem)
        walks = _Walks(files, generation.manifest, seal, tally)
        for check in (walks.check_passages, walks.check_ordinals):
            try:
                yield from check()
            except KalmCacheError as exc:  # a codec that this version does not know
                yield Problem(STATES_FILE, None, str(exc))


class _Walks:
    def __init__(self, files: dict[str, BlockFile], manifest: Manifest, seal: Seal | None, tally: StoreTally) -> None:
        self._manifest, self._seal, self._tally = manifest, seal, tally
        self._states = _Database(files.get(STATES_FILE), STATES_FILE, "blocks")
        self._passages = _Database(files.get(PASSAGES_FILE), PASSAGES_FILE, "passages")
        self._ordinals = _Database(files.get(PASSAGES_FILE), PASSAGES_FILE, "numbers")

    def check_passages(self) -> Iterator[Problem]:
        """Records and passages side by side, in order of keys: each must have the other."""
        states, passages = _Walk(self._states), _Walk(self._passages)
        problems_met = int(self._states.file is None or self._passages.file is None)
        for state, passage in _joined(states, passages):
            for problem in (*states.take_problems(), *passages.take_problems(), *self._check_pair(state, passage)):
                problems_met += 1
                yield problem
        for problem in (*states.take_problems(), *passages.take_problems()):
            problems_met += 1
            yield problem
        counted, stated = self._tally.counts(), self._manifest.counts
        if not problems_met and counted != stated:
            yield Problem(STATES_FILE, None, f"the records add up to {counted}, the manifest says {stated}")
        if self._seal is not None and not problems_met and self._seal.passages != counted.passages:
            difference = f"it says {self._seal.passages} passages, there are {counted.passages}"
            yield Problem(SEAL_FILE, None, difference)

    def _check_pair(self, met_state: WalkedEntry | None, met_passage: WalkedEntry | None) -> Iterator[Problem]:
        key = (met_state or met_passage or _NOTHING).key
        doc_id = key.decode("utf-8", "replace")
        state = met_state or self._states.seek(key)  # it may be in a block with a damaged directory
        passage = met_passage or self._passages.seek(key)
        if isinstance(state, WalkedEntry) and state.entry is not None:
            for problem in self._record_problems(state.common, state.entry):
                yield Problem(STATES_FILE, doc_id, problem)
        elif not isinstance(state, WalkedEntry) and self._states.file is not None:
            yield Problem(STATES_FILE, doc_id, state or "its record is not there, and the passage is")
        if isinstance(passage, WalkedEntry) and passage.entry is not None:
            for problem in self._text_problems(doc_id, passage.entry):
                yield Problem(PASSAGES_FILE, doc_id, problem)
        elif not isinstance(passage, WalkedEntry) and self._passages.file is not None:
            yield Problem(PASSAGES_FILE, doc_id, passage or "it is not there, and its record is")

    def _record_problems(self, common: bytes, entry: Entry) -> Iterator[str]:
        built, record = self._manifest.fingerprint, unpack_record(common, entry.fields, entry.payload)
        codec = codec_by_number(record.codec)
        if codec is None or codec.number != get_codec(built.codec).number:  # a zstd level is in no number
            yield f"its codec has number {record.codec}, the manifest says {built.codec}"
        if record.chunk_size != built.chunk_size:
            yield f"its chunk size is {record.chunk_size}, the manifest says {built.chunk_size}"
            return  # its rows follow from it
        self._tally.add(record)
        if record.width != self._manifest.width:
            yield f"its states are {record.width} wide, the manifest says {self._manifest.width}"
        if not 0 < record.tokens <= built.max_length:
            yield f"it has {record.tokens} tokens, the manifest says 1 to {built.max_length}"
        try:
            if codec and not np.isfinite(decode(codec, record.payload, record.rows, record.width)).all():
                yield "its states are not finite"
        except DamagedRecordError as exc:
            yield str(exc).removeprefix("payload 0: ")

    def _text_problems(self, doc_id: str, entry: Entry) -> Iterator[str]:
        if bool(entry.payload) != self._manifest.fingerprint.store_text:
            yield "it has a text, in an index that keeps none" if entry.payload else "its text is missing"
        if not entry.payload:
            return
        try:
            text = unpack_text(entry.payload)
        except DamagedRecordError as exc:
            yield str(exc)
            return
        self._tally.texts += 1
        if Passage(doc_id, text).content_hash() != meta_of(entry).content_hash:
            yield "its text is not the one that its states were made from"

    def check_ordinals(self) -> Iterator[Problem]:
        """Every ordinal leads to a passage that has it; as many as passages, so that each passage has one."""
        walk = _Walk(self._ordinals)
        for walked in walk:
            yield from walk.take_problems()
            if walked.entry is not None:
                yield from self._check_ordinal(walked.entry)
        yield from walk.take_problems()
        if len(self._tally.ordinals) != self._tally.passages:
            yield from self._check_reverse()
        last = self._tally.ordinals[-1] if self._tally.ordinals else -1
        if self._seal is not None and last >= self._seal.next_ordinal:
            problem = f"ordinal {last} was given, but the next one to give is {self._seal.next_ordinal}"
            yield Problem(SEAL_FILE, None, problem)

    def _check_ordinal(self, entry: Entry) -> Iterator[Problem]:
        try:
            ordinal, doc_id = ordinal_of(entry.key), doc_id_of(bytes(entry.payload))
        except DamagedRecordError as exc:
            yield Problem(PASSAGES_FILE, None, str(exc))
            return
        self._tally.ordinals.append(ordinal)
        passage = self._passages.seek(bytes(entry.payload))
        if passage is None:
            yield Problem(PASSAGES_FILE, doc_id, f"ordinal {ordinal} leads to it, and it is not there")
        elif isinstance(passage, WalkedEntry) and passage.entry and meta_of(passage.entry).ordinal != ordinal:
            stored = meta_of(passage.entry).ordinal
            yield Problem(PASSAGES_FILE, doc_id, f"ordinal {ordinal} leads to it, its own is {stored}")

    def _check_reverse(self) -> Iterator[Problem]:
        for walked in _Walk(self._passages):
            if walked.entry is not None:
                ordinal = meta_of(walked.entry).ordinal
                if self._ordinals.seek(ordinal_key(ordinal)) is None:
                    doc_id = walked.key.decode("utf-8", "replace")
                    yield Problem(PASSAGES_FILE, doc_id, f"its ordinal {ordinal} is not there")


_NOTHING = WalkedEntry(b"", b"", None)


class _Database:
    """One database, or none where its file cannot be opened."""

    def __init__(self, file: BlockFile | None, file_name: str, name: str) -> None:
        self.file, self.file_name, self.name = file, file_name, name
        self.kind = {"blocks": STATES, "passages": PASSAGES, "numbers": ORDINALS}[name]

    def seek(self, key: bytes) -> WalkedEntry | str | None:
        """One entry; a problem where it is damaged."""
        if self.file is None:
            return None
        try:
            with self.file.reading(self.name) as reader:
                block = reader.block_of(key)
                place = None if block is None else block.find(key)
                if block is None or place is None:
                    return None
                return WalkedEntry(key, block.common, block.valid_entry(place))
        except StoreError as exc:
            return str(exc)


class _Walk:
    """All of a database, in order of keys, whatever is damaged in it; what is wrong with it gathers meanwhile."""

    def __init__(self, database: _Database) -> None:
        self._database, self._last = database, b""
        self._problems: list[Problem] = []

    def take_problems(self) -> list[Problem]:
        """What has gathered since the last call."""
        taken, self._problems = self._problems, []
        return taken

    def __iter__(self) -> Iterator[WalkedEntry]:
        if self._database.file is not None:
            with self._database.file.reading(self._database.name, ahead=True) as reader:
                for first, value in reader.values():
                    yield from self._entries(first, value)

    def _entries(self, first: bytes, value: memoryview) -> Iterator[WalkedEntry]:
        show = self._database.kind.show
        try:
            block = Block(self._database.kind, value)
        except DamagedRecordError as exc:
            self._report(None, f"the block that begins with {show(first)}: {exc}")
            return
        try:
            block.check_directory()
            if block.key(0) != first:
                raise DamagedRecordError(f"it begins with {show(block.key(0))}")
        except DamagedRecordError as exc:
            self._report(None, f"the block that begins with {show(first)}: {exc}")
            yield from self._block_entries(block, is_valid=False)
        else:
            yield from self._block_entries(block, is_valid=True)

    def _block_entries(self, block: Block, *, is_valid: bool) -> Iterator[WalkedEntry]:
        for i in range(len(block)):
            key, entry = block.key(i), None
            try:
                entry = block.valid_entry(i)
            except DamagedRecordError as exc:
                if not is_valid:
                    continue  # nor is its key to be trusted: whose it was, its counterpart tells
                self._report(key.decode("utf-8", "replace"), str(exc))
            if key <= self._last:
                self._report(None, f"{self._database.kind.show(key)} is out of order")
                continue
            self._last = key
            yield WalkedEntry(key, block.common, entry)

    def _report(self, doc_id: str | None, problem: str) -> None:
        self._problems.append(Problem(self._database.file_name, doc_id, problem))


def _joined(left: _Walk, right: _Walk) -> Iterator[tuple[WalkedEntry | None, WalkedEntry | None]]:
    """Both walks at once, entries of equal keys together."""
    lefts, rights = iter(left), iter(right)
    a, b = next(lefts, None), next(rights, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.key < b.key):
            yield a, None
            a = next(lefts, None)
        elif a is None or b.key < a.key:
            yield None, b
            b = next(rights, None)
        else:
            yield a, b
            a, b = next(lefts, None), next(rights, None)


def main() -> None:
    """One JSON line for every problem, flushed at once, and a last one with what was checked."""
    tally = StoreTally()
    for problem in check_store(open_generation(Path(sys.argv[1])).part(sys.argv[2]), tally):
        print(json.dumps(problem._asdict()), flush=True)
    print(json.dumps({"records": tally.passages, "texts": tally.texts}))


if __name__ == "__main__":
    main()
