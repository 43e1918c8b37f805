"""What `kalm-cache cache` does to a text cache: statistics, verifying, trimming, clearing. Services may go on."""

from __future__ import annotations

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
from kalm_cache.storage.text_cache.place import DATA, folder_of, live_number, new_file, remove_file


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification read: how many records, and what is wrong with which ones."""

    records: int
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Bytes of the file before and after, and how many records left; `None`: all of a file that cannot be opened."""

    bytes_before: int
    bytes_after: int
    removed: int | None


def stats(folder: Path) -> FileStats:
    """What a cache holds. Raises `StoreError` where there is none, or it is damaged."""
    with _opened(folder) as file:
        return file.stats()


def verify(folder: Path) -> Verified:
    """Check every record against its checksum. A damaged one is never served, whether it was verified or not.

    Raises:
        StoreError: there is no cache, or its pages cannot be read.
    """
    records, problems = 0, []
    with _opened(folder) as file:
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
        StoreError: there is no cache, it is damaged, or the disk is full.
    """
    if not bytes_wanted:
        return clear(folder)
    with _changing(folder) as live, _opened(folder) as file:
        before, removed = _bytes(live), file.shrink(bytes_wanted)
        with new_file(folder) as building:
            file.copy_to(building)
        remove_file(live)
        return Trimmed(before, _bytes(_live(folder)), removed)


def clear(folder: Path) -> Trimmed:
    """Put an empty file in the place of the live one, whatever is in that: it need not open.

    Raises:
        IndexLockedError: it is being trimmed or cleared already.
        StoreError: there is no cache, or the disk is full.
    """
    with _changing(folder) as live:
        before = _bytes(live)
        with new_file(folder) as building:
            CacheFile(building, LEAST_BYTES).close()
        removed = _entries(live)  # the new file is in its place, so that damage cannot keep it there
        remove_file(live)
        return Trimmed(before, _bytes(_live(folder)), removed)


def _entries(live: Path) -> int | None:
    try:
        with _file(live) as file:
            return file.stats().entries
    except StoreError:
        return None


@contextmanager
def _changing(folder: Path) -> Iterator[Path]:
    """The live file's sub-folder, while nobody else puts another one in its place."""
    _live(folder)  # the lock would make a folder that is not there
    with build_lock(folder), disk_errors(folder):
        yield _live(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[CacheFile]:
    """The live file, open."""
    with _file(_live(folder)) as file:
        yield file


@contextmanager
def _file(live: Path) -> Iterator[CacheFile]:
    room = _bytes(live) * 9 // 8 + LEAST_BYTES  # a deletion copies pages, and a file that never was full has none free
    file = OPEN_FILES.use(live, room, writable=True)
    try:
        yield file
    finally:
        OPEN_FILES.leave(file)


def _live(folder: Path) -> Path:
    number = live_number(folder)
    if number is None:
        raise StoreError(f"{folder}: no text cache; serve --text-cache and warm make one")
    return folder_of(folder, number)


def _bytes(live: Path) -> int:
    return (live / DATA).stat().st_size
