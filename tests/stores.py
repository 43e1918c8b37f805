"""Sealed stores for tests: written, taken apart, put together again with something changed, and damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kalm_cache.storage.block_file import BlockFile, BlockWriter, digest_of
from kalm_cache.storage.checksummed_block import Block, Kind, checksum
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.lmdb_pages import read_tree
from kalm_cache.storage.passage_store import (
    PASSAGES,
    PASSAGES_DATABASES,
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_DATABASES,
    STATES_FILE,
    PassageMeta,
    Seal,
    key_of,
    pack_text,
    read_seal,
)
from kalm_cache.storage.record import STATES, Record, unpack_record
from kalm_cache.storage.store_writer import StoreWriter, unseal

Parts = tuple[bytes, bytes, bytes]  # common, fields, payload


@dataclass(frozen=True, slots=True)
class Stored:
    """One passage of a store, all that is kept of it."""

    record: Record
    meta: PassageMeta
    text: str | None = None


@dataclass(slots=True)
class Contents:
    """All entries of a store by database and key, and what its seal says."""

    blocks: dict[bytes, Parts] = field(default_factory=dict)
    passages: dict[bytes, Parts] = field(default_factory=dict)
    ordinals: dict[bytes, Parts] = field(default_factory=dict)
    next_ordinal: int = 0
    passage_count: int = 0

    def record(self, doc_id: str) -> Record:
        return unpack_record(*self.blocks[key_of(doc_id)])

    def set_record(self, doc_id: str, **fields: object) -> None:
        record = self.record(doc_id)._replace(**fields)
        self.blocks[key_of(doc_id)] = (record.common, record.fields, bytes(record.payload))

    def meta(self, doc_id: str) -> PassageMeta:
        fields = self.passages[key_of(doc_id)][1]
        return PassageMeta(int.from_bytes(fields[:8], "little"), fields[8:])

    def set_identity(self, doc_id: str, meta: PassageMeta) -> None:
        common, _, text = self.passages[key_of(doc_id)]
        self.passages[key_of(doc_id)] = (common, meta.pack(), text)


def record(payload: bytes = b"payload", **fields: object) -> Record:
    return Record(5, 4, 8, 9, False, payload)._replace(**fields)


def write_store(folder: Path, passages: dict[str, Stored], next_ordinal: int | None = None) -> Seal:
    """Seal a store of these passages."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted((key_of(doc_id), stored) for doc_id, stored in passages.items())
    ordinals = sorted((stored.meta.ordinal, key) for key, stored in ordered)
    with StoreWriter(folder) as writer:
        for key, stored in ordered:
            text = b"" if stored.text is None else pack_text(stored.text)
            writer.add(key, stored.record, stored.meta, text)
        return writer.finish(ordinals, len(passages) if next_ordinal is None else next_ordinal)


def read_contents(folder: Path) -> Contents:
    """Everything in a store."""
    seal = read_seal(folder)
    states, passages = read_file(folder / STATES_FILE), read_file(folder / PASSAGES_FILE)
    return Contents(states["blocks"], passages["passages"], passages["numbers"], seal.next_ordinal, seal.passages)


def read_file(path: Path) -> dict[str, dict[bytes, Parts]]:
    databases = STATES_DATABASES if path.name == STATES_FILE else PASSAGES_DATABASES
    file, found = BlockFile(path, databases, tree=None), {}
    for name in databases:
        with file.reading(name) as reader:
            found[name] = {
                entry.key: (block.common, entry.fields, bytes(entry.payload))
                for block in reader.blocks()
                for entry in map(block.valid_entry, range(len(block)))
            }
    file.close()
    return found


def change_contents(folder: Path, change: Callable[[Contents], object]) -> None:
    """Seal a store anew with something changed: every checksum is right, whatever is in it."""
    contents = read_contents(folder)
    change(contents)
    unseal(folder)
    _write_file(folder / STATES_FILE, STATES_DATABASES, {"blocks": contents.blocks})
    both = {"passages": contents.passages, "numbers": contents.ordinals}
    _write_file(folder / PASSAGES_FILE, PASSAGES_DATABASES, both)
    trees = {name: digest_of(folder / name) for name in (STATES_FILE, PASSAGES_FILE)}
    seal = Seal(contents.passage_count, contents.next_ordinal, trees)
    (folder / SEAL_FILE).write_bytes(seal.to_json())


def _write_file(path: Path, databases: dict[str, Kind], contents: dict[str, dict[bytes, Parts]]) -> None:
    file = LmdbFile(path, list(databases), writable=True, lock=False)
    for name, kind in databases.items():
        writer = BlockWriter(file, name, kind)
        for key, (common, fields, payload) in sorted(contents[name].items()):
            writer.add(common, key, fields, payload, checksum(kind, common, key, fields, payload))
        writer.finish()
    file.close()


def records_of(folder: Path) -> dict[str, Record]:
    """Every record of a store by doc id."""
    return {key.decode(): unpack_record(*parts) for key, parts in read_contents(folder).blocks.items()}


def payload_of(folder: Path, doc_id: str) -> bytes:
    """The payload under an id, whole or not, whatever else is damaged."""
    path = folder / STATES_FILE
    start, end = _span(path, "blocks", doc_id)
    return path.read_bytes()[start:end]


def _span(path: Path, database: str, doc_id: str) -> tuple[int, int]:
    """Where the payload under an id lies in a file."""
    kind = STATES if database == "blocks" else PASSAGES
    content = path.read_bytes()
    values = read_tree(content).databases[database]
    place = values.place_of(key_of(doc_id))
    assert place is not None
    at = values.starts[place]
    block = Block(kind, content[at : at + values.sizes[place]])
    found = block.find(key_of(doc_id))
    assert found is not None
    start, end = block.span(found)
    return at + start, at + end


def flip_bit_of(path: Path, content: bytes) -> None:
    """Flip one bit within the one place of a file where `content` is."""
    valid = path.read_bytes()
    assert valid.count(content) == 1
    _flip_middle(path, valid.index(content), valid.index(content) + len(content))


def damage_record(folder: Path, doc_id: str) -> None:
    """Flip one bit of the payload that `folder` has under an id."""
    _flip_middle(folder / STATES_FILE, *_span(folder / STATES_FILE, "blocks", doc_id))


def damage_text(folder: Path, doc_id: str) -> None:
    """Flip one bit of a text."""
    _flip_middle(folder / PASSAGES_FILE, *_span(folder / PASSAGES_FILE, "passages", doc_id))


def _flip_middle(path: Path, start: int, end: int) -> None:
    content = bytearray(path.read_bytes())
    content[(start + end) // 2] ^= 8
    path.write_bytes(content)
