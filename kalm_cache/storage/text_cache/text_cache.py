"""`TextCache`: records by key, from a folder that processes share. Never raises where an answer can do without it.

A key is a hash of what the encoder sees, within a namespace: the digest of all that decides the bytes. The file opens
in the process that first asks for it, so that a service may fork in between.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalm_cache.errors import DamagedRecordError, IndexLockedError, StoreError, UsageError
from kalm_cache.storage.checked_json import digest_of_fields
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.at_exit import write_at_exit
from kalm_cache.storage.text_cache.cache_file import BATCH, LEAST_BYTES, CacheFile, Found
from kalm_cache.storage.text_cache.cached_blocks import Put
from kalm_cache.storage.text_cache.open_files import OPEN_FILES
from kalm_cache.storage.text_cache.place import (
    DATA,
    folder_of,
    live_number,
    new_file,
    remove_left_behind,
    require_free,
    require_local,
)
from kalm_cache.storage.text_cache.write_behind import BATCH_BYTES, Pending, WriteBehind

QUEUE_BYTES = 64 << 20
WAIT_SECONDS = 0.01  # before looking again whether another process has made the file
LOOK_SECONDS = 1.0  # how often a reader looks whether the file was replaced
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextCacheOptions:
    """How a text cache is opened.

    folder: made when something is written. max_bytes: of its file. ttl_seconds: a record serves so long; `None`: for
    ever. secret: with one, keys are keyed hashes, and who has another secret finds nothing. queue_bytes: of what waits
    to be written. any_file_system: a network file system is not refused. gives_way: writing pauses for answers, and
    more is dropped; for services.
    """

    folder: Path
    max_bytes: int
    ttl_seconds: float | None = None
    secret: bytes = b""
    queue_bytes: int = QUEUE_BYTES
    any_file_system: bool = False
    gives_way: bool = False


@dataclass(slots=True)
class TextCacheCounts:
    """What a process did since it opened the cache; `off`: why nothing is cached any more, or empty."""

    hits: int = 0
    misses: int = 0
    expired: int = 0
    damaged: int = 0
    written: int = 0
    dropped: int = 0
    evicted: int = 0
    off: str = ""


class TextCache:
    """One folder, for all threads of a process; a context manager. `namespace` gives what reads and writes."""

    def __init__(self, options: TextCacheOptions, *, clock: Callable[[], float] = time.time) -> None:
        """Check the options; the file opens on first use.

        Args:
            options: as they are.
            clock: seconds since 1970.

        Raises:
            UsageError: a size below 16 MiB, or a time to live that is not positive.
            StoreError: the folder is on a network file system.
        """
        if options.max_bytes < LEAST_BYTES:
            raise UsageError(f"a text cache of {options.max_bytes} bytes; it needs {LEAST_BYTES >> 20} MiB at least")
        if options.ttl_seconds is not None and not options.ttl_seconds > 0:
            raise UsageError(f"a time to live of {options.ttl_seconds} s; it must be above 0")
        require_free(options.folder)
        if not options.any_file_system:
            require_local(options.folder)
        self.options, self._clock = options, clock
        self._namespaces: dict[bytes, bytes] = {}
        self._read = TextCacheCounts()
        self._start()

    def _start(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: CacheFile | None = None
        self._look_again = 0.0
        self._unusable: set[bytes] = set()  # keys whose record the next write replaces
        self._off = ""
        batch_bytes = min(BATCH_BYTES, int(self.options.max_bytes * BATCH))
        self._writer = WriteBehind(
            self._write, self.options.queue_bytes, batch_bytes, self._turn_off, self.options.gives_way
        )

    def __enter__(self) -> TextCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: it opens the same folder, and what waits here is written here."""
        return {"options": self.options, "_clock": self._clock, "_namespaces": self._namespaces}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read = TextCacheCounts()
        self._start()

    def close(self) -> None:
        """Write what waits, and leave the file. Closing twice does nothing."""
        self._after_fork()
        self._writer.close()
        with self._lock:
            if self._open is not None:
                OPEN_FILES.leave(self._open)
                self._open = None

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was put is written, `timeout` seconds at most; false where it is not by then."""
        self._after_fork()
        return self._writer.flush(timeout)

    def require_writable(self) -> None:
        """Raise `StoreError` where nothing is cached any more: for a job that is there to fill the cache."""
        if self._off:
            raise StoreError(self._off)

    @property
    def counts(self) -> TextCacheCounts:
        """What this process did."""
        read, written = self._read, self._writer.counts
        return TextCacheCounts(
            read.hits,
            read.misses,
            read.expired,
            read.damaged,
            written.written,
            written.dropped,
            written.evicted,
            self._off,
        )

    def namespace(self, description: Mapping[str, Any]) -> Namespace:
        """The part of the cache for states that are computed as `description` says: all that decides their bytes."""
        digest = bytes.fromhex(digest_of_fields(dict(description)))
        self._namespaces[digest] = json.dumps(dict(description), sort_keys=True).encode()
        return Namespace(self, digest)

    def find(self, keys: Sequence[bytes]) -> list[Record | None]:
        """The record under each key, queued ones included; `None` where there is none that can be used.

        One that is damaged or too old counts as missing, and the next `put` of its key replaces it.
        """
        self._after_fork()
        waiting = {key: pending for key in keys if (pending := self._writer.pending(key)) is not None}
        rest = [key for key in keys if key not in waiting]
        found = dict(zip(rest, self._from_file(rest), strict=True)) if rest else {}
        records = [waiting[key].record if key in waiting else self._usable(key, found[key]) for key in keys]
        hits = sum(record is not None for record in records)
        with self._lock:
            self._read.hits += hits
            self._read.misses += len(keys) - hits
        return records

    def holds(self, keys: Sequence[bytes]) -> bool:
        """Whether there is a record under every key. Reads and counts none: one may be damaged, or leave meanwhile."""
        self._after_fork()
        rest = [key for key in keys if self._writer.pending(key) is None]
        if not rest:
            return True
        try:
            with self._using(writable=False) as file:
                return file is not None and file.holds(rest)
        except StoreError as exc:
            self._turn_off(str(exc))
            return False

    def put(self, key: bytes, nbytes: int, make: Callable[[], Record]) -> None:
        """Queue a record to be written; never waits.

        Args:
            key: of `Namespace.key`.
            nbytes: memory that `make` holds until it is written.
            make: computes the record, on the writing thread.
        """
        self._after_fork()
        if not self._off:
            write_at_exit(self)
            self._writer.add(Pending(key, nbytes, make, int(self._clock()), replace=key in self._unusable))

    def _usable(self, key: bytes, found: Found | DamagedRecordError | None) -> Record | None:
        if found is None:
            return None
        if isinstance(found, DamagedRecordError) or found.written < self._expired_before:
            self._count_unusable(key, isinstance(found, DamagedRecordError))
            return None
        if found.is_old and not self._off:
            record = found.record
            self._writer.add(Pending(key, len(record.payload), lambda: record, found.written, replace=True))
        return found.record

    def _count_unusable(self, key: bytes, is_damaged: bool) -> None:
        with self._lock:
            self._unusable.add(key)
            self._read.damaged += is_damaged
            self._read.expired += not is_damaged

    @property
    def _expired_before(self) -> int:
        ttl = self.options.ttl_seconds
        return 0 if ttl is None else int(self._clock() - ttl)

    def _from_file(self, keys: Sequence[bytes]) -> Sequence[Found | DamagedRecordError | None]:
        nothing: list[Found | DamagedRecordError | None] = [None] * len(keys)
        try:
            with self._using(writable=False) as file:
                return nothing if file is None else file.find(keys)
        except StoreError as exc:
            self._turn_off(str(exc))
            return nothing

    def _write(self, puts: Sequence[Put]) -> int:
        with self._using(writable=True) as file:
            assert file is not None
            left = file.write(puts, dict(self._namespaces), self._expired_before)
        self._unusable.difference_update(put.key for put in puts)
        return left

    @contextmanager
    def _using(self, *, writable: bool) -> Iterator[CacheFile | None]:
        """The live file, which stays open meanwhile; `None` where there is none and none is to be made."""
        with self._lock:
            current = self._current(writable)
            file = None if current is None else self._open_again(current.folder)
        try:
            yield file
        finally:
            if file is not None:
                OPEN_FILES.leave(file)

    def _current(self, writable: bool) -> CacheFile | None:
        """The open file; another one where the folder has a newer one, and the first one where something is written."""
        now = time.monotonic()
        if self._open is not None and now < self._look_again:
            return self._open
        self._look_again = now + LOOK_SECONDS
        number = live_number(self.options.folder)
        if self._open is not None and (number is None or self._open.folder != folder_of(self.options.folder, number)):
            OPEN_FILES.leave(self._open)
            self._open = None
        if self._open is None and (writable or number is not None):
            self._open = self._open_live(number or self._make())
            self._warn_if_larger(self._open.folder / DATA)
            remove_left_behind(self.options.folder)
        return self._open

    def _warn_if_larger(self, data: Path) -> None:
        folder, gib = self.options.folder, self.options.max_bytes / (1 << 30)
        file_bytes = data.stat().st_size if data.exists() else 0
        if file_bytes > self.options.max_bytes:
            logger.warning(
                "%s: the file has %.3g GiB, more than the %.3g GiB that it may; what is too much leaves, but only this "
                "makes the file smaller: kalm-cache cache trim --gib %.3g --text-cache %s",
                *(folder, file_bytes / (1 << 30), gib, gib, folder),
            )

    def _open_live(self, number: int) -> CacheFile:
        """The file of a number, or the one that took its place meanwhile."""
        try:
            return self._open_again(folder_of(self.options.folder, number))
        except StoreError:
            newer = live_number(self.options.folder)
            if newer is None or newer <= number:
                raise
            return self._open_live(newer)

    def _make(self) -> int:
        """Make the first file, or wait for another process that does. Returns its number."""
        folder = self.options.folder
        while (number := live_number(folder)) is None:
            try:
                with build_lock(folder):
                    if live_number(folder) is None:
                        with new_file(folder) as building:
                            CacheFile(building, self.options.max_bytes).close()
            except IndexLockedError:
                time.sleep(WAIT_SECONDS)
            except OSError as exc:
                raise StoreError(f"{folder}: the text cache cannot be made: {exc.strerror}") from exc
        return number

    def _open_again(self, folder: Path) -> CacheFile:
        return OPEN_FILES.use(folder, self.options.max_bytes, writable=os.access(folder, os.W_OK))

    def _after_fork(self) -> None:
        """In a child of a fork, start anew: threads and open files do not cross it."""
        if os.getpid() != self._process:
            self._start()

    def _turn_off(self, why: str) -> None:
        if not self._off:
            self._off = why
            logger.warning("texts are no longer cached, answers go on: %s", why)


@dataclass(frozen=True, slots=True)
class Namespace:
    """Keys of one namespace, and the cache they lead into."""

    cache: TextCache
    digest: bytes

    def key(self, kind: bytes, content: bytes) -> bytes:
        """SHA-256 of what the encoder sees, 32 bytes; with a secret its keyed form (HMAC, RFC 2104).

        Args:
            kind: what `content` is, of one byte, so that a text and tokens of the same bytes differ.
            content: the bytes.
        """
        secret, message = self.cache.options.secret, self.digest + kind + content
        return hmac.digest(secret, message, "sha256") if secret else hashlib.sha256(message).digest()
