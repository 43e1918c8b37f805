"""Write-behind: one thread writes what requests computed, in batches, while they answer.

Its queue is bounded in bytes: what does not fit is dropped and counted, as no answer waits for it. What is queued can
be read already (`pending`). In a service the thread gives way to answers, which want the processor and the interpreter,
unless somebody waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from kalm_cache.errors import KalmCacheError, StoreError
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.cache_file import NoRoomError
from kalm_cache.storage.text_cache.cached_blocks import Put

BATCH_BYTES = 4 << 20  # at most, whatever the file's size
WAIT_SECONDS = 0.2  # for more, so that a batch fills its blocks
GIVE_WAY = 3.0  # times as long as it made a record or wrote a batch, the thread pauses
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pending:
    """A record to be written; `make` computes it, on the writing thread or for who reads it before."""

    key: bytes
    nbytes: int
    make: Callable[[], Record]
    written: int
    replace: bool = False
    _made: Record | None = None
    _failed: bool = False

    @property
    def record(self) -> Record | None:
        """The record, made once; `None` where the codec cannot hold its states."""
        if self._made is None and not self._failed:
            try:
                self._made = self.make()
            except StoreError as exc:
                self._failed = True
                logger.warning("a text is not cached: %s", exc)
        return self._made

    def put(self) -> Put | None:
        """As the file takes it."""
        record = self.record
        return None if record is None else Put(self.key, record, self.written, self.replace)


@dataclass(slots=True)
class WriteCounts:
    """What became of records: written, dropped (the queue was full, or there was no room), evicted to make room."""

    written: int = 0
    dropped: int = 0
    evicted: int = 0


@dataclass(slots=True)
class WriteBehind:
    """Gives batches to `write`, which returns how many records left. `off` says why nothing is written any more.

    queue_bytes: more than this is not queued. batch_bytes: written at once. on_off: gets the reason, once. gives_way:
    the thread pauses after each record, and after each batch.
    """

    write: Callable[[Sequence[Put]], int]
    queue_bytes: int
    batch_bytes: int
    on_off: Callable[[str], None]
    gives_way: bool = False
    counts: WriteCounts = field(default_factory=WriteCounts)
    off: str | None = None
    _queue: dict[bytes, Pending] = field(default_factory=dict)
    _queued_bytes: int = 0
    _writing: dict[bytes, Pending] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _hurry: threading.Event = field(default_factory=threading.Event)
    _waiting: int = 0  # who wait until all is written
    _closing: bool = False
    _thread: threading.Thread | None = None

    def add(self, pending: Pending) -> None:
        """Queue a record; the thread starts with the first one. Never waits for the disk."""
        with self._changed:
            if self.off is not None or self._closing or pending.key in self._queue or pending.key in self._writing:
                return
            if self._queued_bytes + pending.nbytes > self.queue_bytes:
                self.counts.dropped += 1
                return
            self._queue[pending.key] = pending
            self._queued_bytes += pending.nbytes
            self._start()
            self._changed.notify_all()

    def pending(self, key: bytes) -> Pending | None:
        """The record of a key that is queued, or being written."""
        with self._changed:
            return self._queue.get(key) or self._writing.get(key)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was queued is written, `timeout` seconds at most; false where it is not by then."""
        with self._changed:
            self._waiting += 1
            self._hurry.set()
            try:
                return self._changed.wait_for(lambda: self.off is not None or not self._has_work, timeout)
            finally:
                self._waiting -= 1
                if not (self._waiting or self._closing):
                    self._hurry.clear()

    @property
    def _has_work(self) -> bool:
        return bool(self._queue or self._writing)

    def close(self) -> None:
        """Write what is queued, and end the thread."""
        with self._changed:
            self._closing = True
            self._hurry.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kalm-cache-text-cache", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._take():
            try:
                self._write()
            finally:
                with self._changed:
                    self._writing = {}
                    self._changed.notify_all()

    def _take(self) -> bool:
        """Move a batch from the queue to what is being written; false at the end."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            until = time.monotonic() + WAIT_SECONDS
            while (
                self._queued_bytes < self.batch_bytes and not self._closing and (left := until - time.monotonic()) > 0
            ):
                self._changed.wait(left)
            taken = 0
            for key, pending in list(self._queue.items()):
                if taken and taken + pending.nbytes > self.batch_bytes:
                    break
                taken += pending.nbytes
                self._writing[key] = self._queue.pop(key)
            self._queued_bytes -= taken
            return bool(self._writing)

    def _write(self) -> None:
        try:
            puts = [put for pending in self._writing.values() if (put := self._made(pending)) is not None]
            self.counts.dropped += len(self._writing) - len(puts)
            if puts:
                with self._giving_way():
                    self.counts.evicted += self.write(puts)
            self.counts.written += len(puts)
        except NoRoomError:
            self.counts.dropped += len(self._writing)
        except (KalmCacheError, OSError) as exc:
            self._turn_off(str(exc))

    def _made(self, pending: Pending) -> Put | None:
        with self._giving_way():
            return pending.put()

    @contextmanager
    def _giving_way(self) -> Iterator[None]:
        """After the block, the pause that it costs."""
        started = time.perf_counter()
        yield
        if self.gives_way:
            self._hurry.wait(GIVE_WAY * (time.perf_counter() - started))

    def _turn_off(self, why: str) -> None:
        with self._changed:
            self.off = why
            self.counts.dropped += len(self._writing) + len(self._queue)
            self._queue, self._queued_bytes = {}, 0
        self.on_off(why)
