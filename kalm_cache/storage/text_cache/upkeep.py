"""What `kalm-cache cache` does to a text cache: statistics, verifying, trimming. Services may go on meanwhile."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage.checksummed_block import Block
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.text_cache.cache_file import LEAST_BYTES, CacheFile, FileStats
from kalm_cache.storage.text_cache.cached_blocks import CACHED
from kalm_cache.storage.text_cache.open_files import OPEN_FILES
from kalm_cache.storage.text_cache.place import folder_of, live_number, new_file


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification read: how many records, and what is wrong with which ones."""

    records: int
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Bytes of the file before and after, and how many records left."""

    bytes_before: int
    bytes_after: int
    removed: int


def stats(folder: Path) -> FileStats:
    """What a cache holds. Raises `StoreError` where there is none."""
    with _opened(folder) as (_, file):
        return file.stats()


def verify(folder: Path) -> Verified:
    """Check every record against its checksum. A damaged one is never served, whether it was verified or not.

    Raises:
        StoreError: there is no cache, or its pages cannot be read.
    """
    records, problems = 0, []
    with _opened(folder) as (_, file):
        for number, value in file.blocks():
            try:
                block = Block(CACHED, value)
                block.check_directory()
                records += len(block)
                problems += list(_damaged(block, number))
            except (DamagedRecordError, struct.error) as exc:
                problems.append(f"block {number}: {exc}")
    return Verified(records, problems)


def _damaged(block: Block, number: int) -> Iterator[str]:
    for i in range(len(block)):
        try:
            block.valid_entry(i)
        except DamagedRecordError as exc:
            yield f"block {number}: {exc}"


def trim(folder: Path, bytes_wanted: int) -> Trimmed:
    """Put a smaller file in the place of the live one: the oldest records leave until the rest fits.

    While it is written both are on the disk. What services write meanwhile is lost to the cache, and to nothing else.

    Args:
        folder: of the cache.
        bytes_wanted: of the new file; 0 removes everything.

    Raises:
        IndexLockedError: it is being trimmed or cleared already.
        StoreError: there is no cache, or the disk is full.
    """
    with build_lock(folder), disk_errors(folder), _opened(folder) as (number, file):
        before = file.stats()
        removed = before.entries if not bytes_wanted else file.shrink(bytes_wanted)
        with new_file(folder, number + 1) as building:
            if bytes_wanted:
                file.copy_to(building)
            else:
                CacheFile(building, LEAST_BYTES).close()
        shutil.rmtree(folder_of(folder, number))
    return Trimmed(before.file_bytes, stats(folder).file_bytes, removed)


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[int, CacheFile]]:
    """Number and file of the live one, open."""
    number = live_number(folder)
    if number is None:
        raise StoreError(f"{folder}: no text cache; serve --text-cache and warm make one")
    data = folder_of(folder, number) / "data.mdb"
    size = data.stat().st_size if data.exists() else 0
    file = OPEN_FILES.use(folder_of(folder, number), max(size, LEAST_BYTES), writable=True)
    try:
        yield number, file
    finally:
        OPEN_FILES.leave(file)
