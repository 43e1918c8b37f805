"""LMDB files: opened, shared within the process, read and grown. Knows nothing of what is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import lmdb

from kalm_cache.errors import StoreError

INITIAL_MAP_BYTES = 1 << 30
_T = TypeVar("_T")


class LmdbFile:
    """One open LMDB file and its named databases."""

    def __init__(self, path: Path, databases: Sequence[str], *, writable: bool) -> None:
        """Open (and with `writable`, create) the file. Raises `StoreError` when it cannot be opened."""
        self.path = path
        self.environment = _open(path, writable=writable, databases=len(databases))
        try:
            self._db = {name: self.environment.open_db(name.encode(), create=writable) for name in databases}
        except lmdb.Error as exc:
            self.environment.close()
            raise StoreError(f"{path}: not a store of this kind, or a damaged one; run kalm-cache verify: {exc}") from exc

    def __getitem__(self, database: str) -> Any:
        """The handle of a database, for a write transaction over several of them."""
        return self._db[database]

    @contextmanager
    def reading(self, database: str) -> Iterator[lmdb.Transaction]:
        """A snapshot of one database. Raises `StoreError` when pages of the file are damaged."""
        try:
            with self.environment.begin(db=self._db[database]) as txn:
                yield txn
        except lmdb.Error as exc:
            raise StoreError(f"{self.path}: cannot be read; run kalm-cache verify: {exc}") from exc

    def write(self, change: Callable[[lmdb.Transaction], _T]) -> _T:
        """Run `change` in one transaction; when the map is full, double it and run it again.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        while True:
            try:
                with self.environment.begin(write=True) as txn:
                    return change(txn)
            except lmdb.MapFullError:
                self.environment.set_mapsize(self.environment.info()["map_size"] * 2)
            except lmdb.Error as exc:
                raise StoreError(f"{self.path}: cannot be written: {exc}") from exc

    def close(self) -> None:
        """Unmap the file; every use after it is an error."""
        self.environment.close()


class SharedFile:
    """Read access to a file that never changes. All that read it in this process share one mapping, for LMDB refuses
    to open a file twice; the last `close()` unmaps it."""

    _open: dict[Path, tuple[LmdbFile, int, int]] = {}  # real path -> file, its inode, how many share it
    _lock = Lock()

    def __init__(self, path: Path, databases: Sequence[str]) -> None:
        """Open or join. Raises `StoreError` when the file cannot be opened, or was replaced since others opened it."""
        self._path = path.resolve()
        with self._lock:
            self.file, inode, users = self._open.get(self._path) or (
                LmdbFile(path, databases, writable=False),
                path.stat().st_ino,
                0,
            )
            if not path.exists() or path.stat().st_ino != inode:
                raise StoreError(f"{path}: was replaced while this process has it open; close the older one first")
            self._open[self._path] = (self.file, inode, users + 1)

    def close(self) -> None:
        """Leave; the last one to leave unmaps the file."""
