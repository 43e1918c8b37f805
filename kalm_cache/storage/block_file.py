"""LMDB files whose values are blocks, each under its first key. Written once, in key order; read in place.

LMDB gives a value beyond about 2 KB whole pages of 4 KB. A block of 64 of them wastes less than one, whatever the size
of its entries; tests hold the file to 1.10 times its payloads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.process.system import refused
from kalm_cache.storage.checksummed_block import MAX_KEYS_BYTES, Block, BlockBuilder, Buffer, Entry, Kind
from kalm_cache.storage.lmdb_file import LmdbFile
from kalm_cache.storage.lmdb_pages import Values, read_tree

PAGE_BYTES = 4096
BLOCK_BYTES = 64 * PAGE_BYTES - 16  # a value's first page begins with its header
COPIED_BYTES = 256 << 10
TRANSACTION_BYTES = 16 << 20  # LMDB keeps what a transaction writes in memory


class BlockFile:
    """A sealed file, mapped and never locked: any number may be open at once, across forks too.

    `problems`: what of its pages could not be read, when that is no reason to refuse it.
    """

    def __init__(self, path: Path, databases: Mapping[str, Kind], tree: str | None) -> None:
        """Open the file. `tree`: the digest that its pages must have; with `None`, what makes sense of them is read.

        Raises:
            StoreError: it cannot be opened, or its pages have another digest.
        """
        self.path, self._kinds, self._closed = path, databases, False
        try:
            self._map = _map(path)
        except (OSError, ValueError) as exc:  # ValueError: it is empty
            raise StoreError(f"{path}: cannot be opened; {refused(exc, path)}") from exc
        self._map.madvise(mmap.MADV_RANDOM)
        pages = read_tree(memoryview(self._map))
        self.digest, self.problems = pages.digest, pages.problems
        self._values = {name: pages.databases.get(name, Values()) for name in databases}
        if tree is not None and (pages.digest != tree or pages.problems):
            self.close()
            what = pages.problems[0] if pages.problems else "its pages are damaged"
            raise StoreError(f"{path}: not the store that was sealed; run kalm-cache verify: {what}")

    def close(self) -> None:
        """Leave the file; reading it is an error then. Views of it stay valid: the last one to go unmaps it."""
        self._closed = True
        with suppress(BufferError):
            self._map.close()

    @contextmanager
    def reading(self, database: str, *, ahead: bool = False) -> Iterator[BlockReader]:
        """One database. `ahead`: whole blocks are going to be read, so that each is asked for at once.

        Raises:
            StoreError: the file was closed.
        """
        if self._closed:
            raise StoreError(f"{self.path}: was closed")
        yield BlockReader(self._map, self._values[database], self._kinds[database], ahead)


def _map(path: Path) -> mmap.mmap:
    """The file in memory: mapped, which keeps a descriptor open; or copied where it is small, which keeps none."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= COPIED_BYTES:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        copied = mmap.mmap(-1, size)
        copied.write(file.read(size))
        return copied


class BlockReader:
    """The blocks of one database."""

    def __init__(self, mapped: mmap.mmap, values: Values, kind: Kind, ahead: bool) -> None:
        self._map, self._values, self._kind, self._ahead = mapped, values, kind, ahead
        self._view = memoryview(mapped).toreadonly()

    def block_of(self, key: bytes) -> Block | None:
        """The block in which `key` is if it is anywhere. Raises `DamagedRecordError`."""
        place = self._values.place_of(key)
        return None if place is None else Block(self._kind, self._value(place))

    def find(self, key: bytes) -> Entry | None:
        """The entry under `key`. Raises `DamagedRecordError` when it, or the directory that lacks it, is damaged."""
        block = self.block_of(key)
        place = None if block is None else block.find(key)
        if block is None or place is None:
            if block is not None:
                block.check_directory()
            return None
        return block.valid_entry(place)

    def values(self) -> Iterator[tuple[bytes, memoryview]]:
        """First key and bytes of every block, in order, unchecked."""
        for place, key in enumerate(self._values.keys):
            yield key, self._value(place)

    def blocks(self) -> Iterator[Block]:
        """Every block, in order, its directory checked. Raises `DamagedRecordError`."""
        for _, value in self.values():
            block = Block(self._kind, value)
            block.check_directory()
            yield block

    def prefetch(self, keys: Sequence[bytes]) -> None:
        """Have the disk read what entries need, many at once instead of page by page; without waiting for the last.

        First the directories are asked for, then the payloads that they lead to.
        """
        places = {key: place for key in keys if (place := self._values.place_of(key)) is not None}
        for place in places.values():
            self._will_need(self._values.starts[place], min(self._values.sizes[place], PAGE_BYTES))
        for key, place in places.items():
            with suppress(DamagedRecordError):  # reported when it is read
                block = Block(self._kind, self._value(place))
                in_block = block.find(key)
                if in_block is not None:
                    start, end = block.span(in_block)
                    self._will_need(self._values.starts[place] + start, end - start)

    def _value(self, place: int) -> memoryview:
        start, size = self._values.starts[place], self._values.sizes[place]
        if self._ahead:
            self._will_need(start, size)
        return self._view[start : start + size]

    def _will_need(self, start: int, size: int) -> None:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if 0 < size <= len(self._view) - start:
            self._map.madvise(mmap.MADV_WILLNEED, first, start + size - first)


class BlockWriter:
    """Appends entries in rising order of their keys to an empty database."""

    def __init__(self, file: LmdbFile, database: str, kind: Kind, block_bytes: int = BLOCK_BYTES) -> None:
        self._file, self._database, self._kind, self._block_bytes = file, database, kind, block_bytes
        self._builder: BlockBuilder | None = None
        self._packed: list[tuple[bytes, bytes]] = []
        self._packed_bytes = 0
        self.entries = 0

    def add(self, common: bytes, key: bytes, fields: bytes, payload: Buffer, crc: int) -> None:
        """Append an entry; `crc` is its `checksum`. A view is read before `add` is called for the next block.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        builder = self._builder
        if builder is not None and self._is_full(builder, common, key, payload):
            self._pack(builder)
            builder = None
        if builder is None:
            builder = self._builder = BlockBuilder(self._kind, common)
        builder.add(key, fields, payload, crc)
        self.entries += 1

    def finish(self) -> None:
        """Write what is left. Raises `StoreError`."""
        if self._builder is not None:
            self._pack(self._builder)
        self._write()

    def _is_full(self, builder: BlockBuilder, common: bytes, key: bytes, payload: Buffer) -> bool:
        """Whether the block ends before this entry: it is full, or would be with it and wastes less than a page now."""
        if builder.common != common or builder.keys_bytes + len(key) > MAX_KEYS_BYTES:
            return True
        with_it = builder.size_bytes + builder.added_bytes(key, payload)
        nearly = builder.size_bytes > self._block_bytes - PAGE_BYTES
        return builder.size_bytes >= self._block_bytes or (nearly and with_it > self._block_bytes)

    def _pack(self, builder: BlockBuilder) -> None:
        block = builder.pack()
        self._builder = None
        self._packed.append((builder.keys[0], block))
        self._packed_bytes += len(block)
        if self._packed_bytes >= TRANSACTION_BYTES:
            self._write()

    def _write(self) -> None:
        packed, self._packed, self._packed_bytes = self._packed, [], 0

        def append_all(txn: lmdb.Transaction[bytes]) -> None:
            for key, block in packed:
                if not txn.put(key, block, append=True, db=self._file[self._database]):
                    raise StoreError(f"{self._file.path}: key {key!r} is not behind the one before it")

        self._file.write(append_all)


def digest_of(path: Path) -> str:
    """The digest that a finished file's pages must have from now on. Raises `StoreError` when they make no sense."""
    file = BlockFile(path, {}, tree=None)
    file.close()
    if file.problems:
        raise StoreError(f"{path}: was not written as it should be: {file.problems[0]}")
    return file.digest
