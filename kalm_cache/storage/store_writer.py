"""Writes a sealed segment (see passage_store.py): every database in key order, into fresh files.

`store.json` is written last, when all else is on the disk: a folder that has it is finished.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kalm_cache.storage.block_file import BlockWriter, digest_of
from kalm_cache.storage.checksummed_block import Buffer, Entry, checksum
from kalm_cache.storage.content_lookup import CONTENTS_FILE, ContentWriter
from kalm_cache.storage.durable import publish_file, write_atomically
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.passage_store import (
    NO_COMMON,
    ORDINALS,
    PASSAGES,
    PASSAGES_DATABASES,
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_DATABASES,
    STATES_FILE,
    PassageMeta,
    Seal,
    meta_of,
    ordinal_key,
)
from kalm_cache.storage.record import STATES, Record

SUFFIX = ".sealing"


class StoreWriter:
    """A segment's files while they are written. Use as a context manager; without `finish`, nothing is sealed."""

    def __init__(self, folder: Path) -> None:
        """Begin; whatever an earlier attempt left in the folder is removed. Raises `StoreError`."""
        unseal(folder)
        self._folder = folder
        self._states = _fresh(folder / STATES_FILE, list(STATES_DATABASES))
        self._passages = _fresh(folder / PASSAGES_FILE, list(PASSAGES_DATABASES))
        self._records = BlockWriter(self._states, "blocks", STATES)
        self._metas = BlockWriter(self._passages, "passages", PASSAGES)
        self._ordinals = BlockWriter(self._passages, "numbers", ORDINALS)
        self._contents = ContentWriter()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._states.close()
        self._passages.close()

    def add(self, key: bytes, record: Record, meta: PassageMeta, text: Buffer) -> None:
        """Append a passage, in rising order of keys; `text` is a zstd frame, or empty where none is kept."""
        fields, common = record.fields, record.common
        crc = checksum(STATES, common, key, fields, record.payload)
        self._records.add(common, key, fields, record.payload, crc)
        fields = meta.pack()
        self._contents.add(meta.content_hash, meta.ordinal)
        self._metas.add(NO_COMMON, key, fields, text, checksum(PASSAGES, NO_COMMON, key, fields, text))

    def copy(self, common: bytes, state: Entry, passage: Entry) -> None:
        """Append a passage of another sealed segment as it is stored there, in rising order of keys."""
        self._records.add(common, state.key, state.fields, state.payload, state.crc)
        self._metas.add(NO_COMMON, passage.key, passage.fields, passage.payload, passage.crc)
        meta = meta_of(passage)
        self._contents.add(meta.content_hash, meta.ordinal)

    def finish(self, ordinals: Iterable[tuple[int, bytes]], next_ordinal: int) -> Seal:
        """Write the ordinals, rising, and seal. Raises `StoreError` unless there is one for each passage."""
        for ordinal, key in ordinals:
            name = ordinal_key(ordinal)
            self._ordinals.add(NO_COMMON, name, b"", key, checksum(ORDINALS, NO_COMMON, name, b"", key))
        for writer in (self._records, self._metas, self._ordinals):
            writer.finish()
        assert self._records.entries == self._metas.entries == self._ordinals.entries
        self.__exit__()
        trees = {name: _publish(self._folder / name) for name in (STATES_FILE, PASSAGES_FILE)}
        self._contents.write(self._folder)
        seal = Seal(self._metas.entries, next_ordinal, trees)
        write_atomically(self._folder / SEAL_FILE, seal.to_json())
        return seal


def unseal(folder: Path) -> None:
    """Remove the sealed files of a folder, finished or not; the mark that they are finished goes first."""
    for name in (SEAL_FILE, STATES_FILE, PASSAGES_FILE, CONTENTS_FILE):
        for path in (folder / name, folder / f"{name}.tmp", folder / f"{name}{SUFFIX}"):
            path.unlink(missing_ok=True)


def _fresh(path: Path, databases: list[str]) -> LmdbFile:
    written = path.with_name(path.name + SUFFIX)
    return LmdbFile(written, databases, writable=True, durable=False, lock=False)


def _publish(path: Path) -> str:
    written = path.with_name(path.name + SUFFIX)
    publish_file(written, path)
    return digest_of(path)
