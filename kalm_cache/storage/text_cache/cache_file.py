"""One LMDB file of cached records, no larger than its limit: a ring of blocks, and an index from keys to blocks.

    blocks      sequence number u64, big-endian -> a block of records that were written together (checksummed_block.py)
    index       key, 32 B -> the sequence number of the block that holds its record
    namespaces  digest, 32 B -> what it is the digest of, as JSON

Beside them stands `limit`, the bytes that the file might take when it was written last, u64, big-endian.

New blocks get rising numbers, the lowest ones leave first. A hit among the oldest quarter is written again by who owns
the file (`Found.is_old`), so that what is used stays: second chances instead of a write for each hit.

The bound holds for the file itself: LMDB cannot grow it beyond the size of its map. Blocks have nearly all the same
size, so that freed pages fit the next block. Some pages stay free: those that a reader still sees, and those that a
deletion copies. Any number of processes read while one writes; a killed one leaves the last whole transaction.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage.block_file import PAGE_BYTES
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.cached_blocks import CACHED, Put, keys_of, pack_blocks, record_of, times_of
from kalm_cache.storage.text_cache.place import DATA

KEY_BYTES = 32
DATABASES = ("blocks", "index", "namespaces")
LIMIT = b"limit"
LOCK_BYTES = 1 << 17  # of LMDB's own file for readers
LEAST_BYTES = 16 << 20
FREE = 0.1  # of the pages: those that the last two batches freed cannot be used yet, nor those that a reader sees
BATCH = 1 / 32  # of the file, at most in one batch: two of them fit what is free
OLD = 0.25  # of the blocks: a hit in these is worth writing again
EXPIRED_AT_ONCE = 64  # blocks looked at for each batch
MAX_READERS = 1024
NOT_WRITTEN_BYTES = 4 << 20  # at a file's end, at most: LMDB leaves out pages that a batch took and gave back
BAD = (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.MapResizedError)
_SEQUENCE = struct.Struct(">Q")
_T = TypeVar("_T")


class NoRoomError(StoreError):
    """A batch does not fit now; nothing was written, and nothing is broken."""


class Found(NamedTuple):
    """A record that was found. `is_old`: it leaves soon unless it is written again."""

    record: Record
    written: int
    is_old: bool


@dataclass(frozen=True, slots=True)
class FileStats:
    """Pages are of 4 KiB. `oldest`: when the block that leaves next was written, seconds since 1970.

    max_bytes: what the file might take, for who wrote to it last; `None`: nobody has since it was made.
    """

    entries: int
    blocks: int
    used_bytes: int
    file_bytes: int
    max_bytes: int | None
    oldest: int | None
    namespaces: list[dict[str, Any]]


class CacheFile:
    """An open file. Reading and writing from several threads is safe; closing while one reads is not."""

    def __init__(self, folder: Path, max_bytes: int, *, writable: bool = True) -> None:
        """Open (and with `writable`, create) `folder/data.mdb`.

        Args:
            folder: the file's own folder.
            max_bytes: of the file, and of the one beside it that counts readers.
            writable: open for writing; otherwise nothing is written, not even who reads.

        Raises:
            StoreError: it cannot be opened; where it is damaged, it says what mends it.
        """
        self.folder, self.max_bytes = folder, max_bytes
        self._pages = (max_bytes - LOCK_BYTES) // PAGE_BYTES
        try:
            self._environment = lmdb.open(
                str(folder),
                map_size=self._pages * PAGE_BYTES,
                max_dbs=len(DATABASES),
                max_readers=MAX_READERS,
                readonly=not writable,
                lock=writable,
                readahead=False,
                metasync=False,  # a power cut may take the last batch, never the file
            )
            self._open_databases(writable)
        except (lmdb.Error, OSError) as exc:
            raise self._explained("opened", exc) from exc

    def _open_databases(self, writable: bool) -> None:
        try:
            self._require_all_pages(writable)
            self._db: dict[str, Any] = {
                name: self._environment.open_db(name.encode(), create=writable) for name in DATABASES
            }
            if writable:
                self._environment.reader_check()  # slots of processes that were killed
        except (lmdb.Error, OSError):
            self._environment.close()
            raise

    def _require_all_pages(self, writable: bool) -> None:
        """Raise `lmdb.InvalidError` for a file that was cut short: to read beyond its end would end the process."""
        path, environment = self.folder / DATA, self._environment
        if path.stat().st_size >= (environment.info()["last_pgno"] + 1) * PAGE_BYTES:
            return
        if not writable:
            raise lmdb.InvalidError("the file was cut short")
        with environment.begin(write=True):  # nobody else makes it longer meanwhile
            size, pages_end = path.stat().st_size, (environment.info()["last_pgno"] + 1) * PAGE_BYTES
            if size < pages_end - NOT_WRITTEN_BYTES:
                raise lmdb.InvalidError("the file was cut short")
            os.truncate(path, max(size, pages_end))  # what is missing reads as zeros, which are no page

    def _explained(self, done: str, exc: Exception) -> StoreError:
        """What a user is told where the file cannot be opened or used."""
        if isinstance(exc, BAD):
            cache, why = self.folder.parent, str(exc).removeprefix(f"{self.folder}: ")
            mend = f"empty it: kalm-cache cache clear --text-cache {cache}, then restart what uses it"
            return StoreError(f"{cache}: the text cache is damaged ({why}); {mend}")
        return StoreError(f"{self.folder}: the text cache cannot be {done}: {exc}")

    def close(self) -> None:
        """Unmap the file."""
        self._environment.close()

    def find(self, keys: Sequence[bytes]) -> list[Found | DamagedRecordError | None]:
        """The record under each key: `None` where there is none, the error where its checksum does not fit.

        Raises:
            StoreError: the file's pages are damaged, or too many read it.
        """

        def read(txn: lmdb.Transaction[memoryview]) -> list[Found | DamagedRecordError | None]:
            old_before = self._old_before(txn)
            return [self._find(txn, key, old_before) for key in keys]

        return self._retried(lambda: self._in_transaction(read, write=False))

    def holds(self, keys: Sequence[bytes]) -> bool:
        """Whether the index has every key. Raises as `find`."""

        def read(txn: lmdb.Transaction[memoryview]) -> bool:
            return all(txn.get(key, db=self._db["index"]) is not None for key in keys)

        return self._retried(lambda: self._in_transaction(read, write=False))

    def _find(
        self, txn: lmdb.Transaction[memoryview], key: bytes, old_before: int
    ) -> Found | DamagedRecordError | None:
        number = txn.get(key, db=self._db["index"])
        if number is None:
            return None
        try:
            value = txn.get(bytes(number), db=self._db["blocks"])
            if value is None:
                raise DamagedRecordError(f"{CACHED.show(key)}: its block is not there")
            record, written = record_of(value, key)
            return Found(record, written, _SEQUENCE.unpack(number)[0] < old_before)
        except (DamagedRecordError, struct.error) as exc:
            return exc if isinstance(exc, DamagedRecordError) else DamagedRecordError(f"{CACHED.show(key)}: {exc}")

    def _old_before(self, txn: lmdb.Transaction[memoryview]) -> int:
        """Records of blocks below this number leave soon. A file that is half empty lets nothing go."""
        if self._used_pages(txn) < self._pages / 2:
            return 0
        first, last = self._ends(txn)
        return first + int((last - first) * OLD)

    def write(self, puts: Sequence[Put], namespaces: dict[bytes, bytes], expired_before: int = 0) -> int:
        """Write a batch in one transaction, and let the oldest blocks go where it needs their room.

        Args:
            puts: records; one whose key is there already is left out, unless it replaces.
            namespaces: digest -> JSON, of the namespaces that the keys belong to.
            expired_before: blocks at the old end whose records are all older (seconds since 1970) leave as well.

        Returns:
            How many records left.

        Raises:
            NoRoomError: readers hold too many pages, or the batch is larger than the file may be.
            StoreError: the disk is full, or the file cannot be written.
        """

        def change(txn: lmdb.Transaction[memoryview]) -> int:
            index = self._db["index"]
            new = {put.key: put for put in puts if put.replace or txn.get(put.key, db=index) is None}
            packed = list(pack_blocks(list(new.values())))
            pages = sum(-(-(len(block) + 16) // PAGE_BYTES) for _, block in packed)
            left = self._make_room(txn, int(self._pages * (1 - FREE)) - pages)
            left += self._expire(txn, expired_before)
            txn.put(LIMIT, _SEQUENCE.pack(self.max_bytes))
            for digest, description in namespaces.items():
                txn.put(digest, description, db=self._db["namespaces"], overwrite=False)
            for number, (keys, block) in enumerate(packed, start=self._ends(txn)[1] + 1):
                sequence = _SEQUENCE.pack(number)
                txn.put(sequence, block, db=self._db["blocks"], append=True)
                for key in keys:
                    txn.put(key, sequence, db=index)
            return left

        return self._retried(lambda: self._in_transaction(change, write=True), self._free_more)

    def _free_more(self) -> None:
        """Let twice as much go as is usually free: readers hold so much, or blocks lie so, that a batch did not fit."""
        self._environment.reader_check()
        for free in (2 * FREE, 2 * FREE + 0.02):  # LMDB uses again what the transaction before the last one freed
            with suppress(lmdb.MapFullError):
                self._in_transaction(partial(self._make_room, pages=int(self._pages * (1 - free))), write=True)

    def shrink(self, bytes_wanted: int) -> int:
        """Let the oldest blocks go until the records and their index take `bytes_wanted`. Returns records that left."""
        pages = bytes_wanted // PAGE_BYTES
        return self._retried(lambda: self._in_transaction(lambda txn: self._make_room(txn, pages), write=True))

    def copy_to(self, folder: Path) -> None:
        """Write a copy without free pages into an existing, empty folder. Raises `StoreError` where it cannot be."""
        try:
            self._environment.copy(str(folder), compact=True)
        except (lmdb.Error, OSError) as exc:
            raise StoreError(f"{folder}: the text cache cannot be copied there: {exc}") from exc

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of every block, oldest first, a few at a time, so that no transaction lasts.

        Raises:
            StoreError: the file's pages are damaged.
        """
        start = 0
        while True:
            some = self._retried(partial(self._blocks_from, start))
            if not some:
                return
            yield from some
            start = some[-1][0] + 1

    def _blocks_from(self, start: int) -> list[tuple[int, bytes]]:
        with self._environment.begin(db=self._db["blocks"]) as txn:
            cursor = txn.cursor()
            if not cursor.set_range(_SEQUENCE.pack(start)):
                return []
            return [(_SEQUENCE.unpack(key)[0], bytes(block)) for key, block in islice(cursor, EXPIRED_AT_ONCE)]

    def stats(self) -> FileStats:
        """What the file holds."""

        def read(txn: lmdb.Transaction[memoryview]) -> FileStats:
            cursor, limit = txn.cursor(db=self._db["blocks"]), txn.get(LIMIT)
            oldest = min(times_of(bytes(cursor.value()))) if cursor.first() else None
            named = [json.loads(bytes(value)) for _, value in txn.cursor(db=self._db["namespaces"])]
            return FileStats(
                entries=txn.stat(self._db["index"])["entries"],
                blocks=txn.stat(self._db["blocks"])["entries"],
                used_bytes=self._used_pages(txn) * PAGE_BYTES,
                file_bytes=(self.folder / DATA).stat().st_size,
                max_bytes=None if limit is None else _SEQUENCE.unpack(limit)[0],
                oldest=oldest,
                namespaces=named,
            )

        return self._retried(lambda: self._in_transaction(read, write=False))

    def _used_pages(self, txn: lmdb.Transaction[Any]) -> int:
        stats = [txn.stat(db) for db in self._db.values()]
        return sum(one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in stats)

    def _ends(self, txn: lmdb.Transaction[Any]) -> tuple[int, int]:
        """The lowest and the highest number of a block; (1, 0) where there is none."""
        with txn.cursor(db=self._db["blocks"]) as cursor:
            if not cursor.first():
                return 1, 0
            first = _SEQUENCE.unpack(cursor.key())[0]
            cursor.last()
            return first, _SEQUENCE.unpack(cursor.key())[0]

    def _make_room(self, txn: lmdb.Transaction[memoryview], pages: int) -> int:
        """Let the oldest blocks go until all that is left takes `pages`. Returns how many records left."""
        left = 0
        while self._used_pages(txn) > pages and txn.stat(self._db["blocks"])["entries"]:
            left += self._evict_oldest(txn)
        return left

    def _expire(self, txn: lmdb.Transaction[memoryview], before: int) -> int:
        """Let blocks at the old end go whose records are all older than `before`. Returns how many records left."""
        left = 0
        for _ in range(EXPIRED_AT_ONCE if before else 0):
            with txn.cursor(db=self._db["blocks"]) as cursor:
                if not cursor.first() or max(times_of(bytes(cursor.value())), default=0) >= before:
                    break
            left += self._evict_oldest(txn)
        return left

    def _evict_oldest(self, txn: lmdb.Transaction[memoryview]) -> int:
        """Remove the block of the lowest number, and what the index says of its keys where that is not newer."""
        left = 0
        with txn.cursor(db=self._db["blocks"]) as cursor:
            cursor.first()
            number, keys = bytes(cursor.key()), keys_of(bytes(cursor.value()))
        for key in keys:
            current = txn.get(key, db=self._db["index"])
            if current is not None and bytes(current) == number:
                txn.delete(key, db=self._db["index"])
                left += 1
        txn.delete(number, db=self._db["blocks"])
        return left

    def _in_transaction(self, run: Callable[[lmdb.Transaction[memoryview]], _T], *, write: bool) -> _T:
        with self._environment.begin(write=write, buffers=True) as txn:
            return run(txn)

    def _retried(self, step: Callable[[], _T], when_full: Callable[[], None] = lambda: None) -> _T:
        """The step; again where another process opened the file with a larger limit, or it was full."""
        for _ in range(3):
            try:
                return step()
            except lmdb.MapResizedError:
                self._environment.set_mapsize(0)
            except lmdb.MapFullError:
                when_full()
            except (lmdb.Error, OSError) as exc:
                raise self._explained("used", exc) from exc
        raise NoRoomError(
            f"{self.folder}: no room in the text cache: readers hold its pages, or the batch is too large"
        )
