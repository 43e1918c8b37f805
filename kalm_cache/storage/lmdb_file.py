"""LMDB files through LMDB: while they are written, and those of an unfinished build. Knows nothing of what is in them.

Finished files are read by block_file.py, without LMDB.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from kalm_cache.errors import StoreError
from kalm_cache.process.system import explained, refused

INITIAL_MAP_BYTES = 1 << 30
FAULTS_KEPT = 256  # of a page and its neighbours, up to 64 KB each
SCAN = 4096  # entries
_T = TypeVar("_T")


class LmdbFile:
    """One open LMDB file and its named databases: `file["records"]` is the handle of one."""

    def __init__(
        self, path: Path, databases: Sequence[str], *, writable: bool, durable: bool = True, lock: bool = True
    ) -> None:
        """Open (and with `writable`, create) the file.

        Args:
            path: the file.
            databases: names of all its databases.
            writable: whether it may be written; a file that is only read must not change meanwhile.
            durable: whether each transaction is on the disk when it ends; if not, a power cut may spoil the file.
            lock: keep a lock file beside it, for a file that is read while it is written.

        Raises:
            StoreError: it cannot be opened.
        """
        self.path = path
        self._readers, self._faults = 0, _faults()
        self._environment = _open_environment(path, writable, len(databases), durable, lock)
        try:
            self._db = {name: self._environment.open_db(name.encode(), create=writable) for name in databases}
        except lmdb.Error as exc:
            self._environment.close()
            raise StoreError(f"{path}: not a store, or a damaged one; {refused(exc, path)}") from exc

    def __getitem__(self, database: str) -> Any:
        return self._db[database]

    @contextmanager
    def reading(self, database: str) -> Iterator[lmdb.Transaction[bytes]]:
        """A snapshot of one database. Raises `StoreError` when the file's pages are damaged."""
        self._readers += 1
        try:
            with self._environment.begin(db=self._db[database]) as txn:
                yield txn
        except lmdb.Error as exc:
            raise StoreError(f"{self.path}: cannot be read; {refused(exc, self.path)}") from exc
        finally:
            self._readers -= 1
            self._release()

    def scan(self, database: str) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, in order of keys. Not one snapshot: some are read at a time, so that no transaction lasts."""
        start = b""  # LMDB has no empty keys
        while True:
            with self.reading(database) as txn:
                cursor = txn.cursor()
                some = list(islice(cursor, SCAN)) if cursor.set_range(start) else []
            if not some:
                return
            yield from some
            start = some[-1][0] + b"\0"  # the next key that there can be

    def write(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `change` in one transaction; when the map is full, double it and run it again.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        while True:
            try:
                with self._environment.begin(write=True) as txn:
                    changed = change(txn)
                self._release()
                return changed
            except lmdb.MapFullError:
                self._environment.set_mapsize(self._environment.info()["map_size"] * 2)
            except lmdb.Error as exc:
                raise StoreError(f"{self.path}: cannot be written: {explained(exc, self.path)}") from exc

    def _release(self) -> None:
        """Map the file anew when much of it has been touched: what the system keeps of it would count as ours."""
        faults = _faults()
        if not self._readers and faults - self._faults > FAULTS_KEPT:
            self._environment.set_mapsize(self._environment.info()["map_size"])
            self._faults = faults

    def close(self) -> None:
        """Unmap the file; every use after it is an error."""
        self._environment.close()


def _faults() -> int:
    """How often the process met a page that was not mapped."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _open_environment(path: Path, writable: bool, databases: int, durable: bool, lock: bool) -> lmdb.Environment:
    existing_bytes = path.stat().st_size if path.exists() else 0
    try:
        return lmdb.open(
            str(path),
            subdir=False,
            readonly=not writable,
            lock=writable and lock,
            create=writable,
            max_dbs=databases,
            map_size=max(INITIAL_MAP_BYTES, 2 * existing_bytes),
            readahead=False,
            sync=durable,
            max_readers=1024,
        )
    except lmdb.Error as exc:
        raise StoreError(f"{path}: cannot be opened: {explained(exc, path)}") from exc
