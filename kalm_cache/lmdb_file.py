"""LMDB files: opened, shared by the readers of a process, grown. Knows nothing of what is in them."""

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
    """One open LMDB file and its named databases: `file["records"]` is the handle of one."""

    def __init__(self, path: Path, databases: Sequence[str], *, writable: bool) -> None:
        """Open (and with `writable`, create) the file. Raises `StoreError` when it cannot be opened."""
        self.path = path
        self.users = 0
        self._environment = _open_environment(path, writable=writable, databases=len(databases))
        self.inode = path.stat().st_ino
        try:
            self._db = {name: self._environment.open_db(name.encode(), create=writable) for name in databases}
        except lmdb.Error as exc:
            self._environment.close()
            raise StoreError(f"{path}: not a store, or a damaged one; run kalm-cache verify: {exc}") from exc

    def __getitem__(self, database: str) -> Any:
        return self._db[database]

    @contextmanager
    def reading(self, database: str) -> Iterator[lmdb.Transaction[bytes]]:
        """A snapshot of one database. Raises `StoreError` when the file's pages are damaged."""
        try:
            with self._environment.begin(db=self._db[database]) as txn:
                yield txn
        except lmdb.Error as exc:
            raise StoreError(f"{self.path}: cannot be read; run kalm-cache verify: {exc}") from exc

    def write(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `change` in one transaction; when the map is full, double it and run it again.

        Raises:
            StoreError: the disk is full, or the file cannot be written.
        """
        while True:
            try:
                with self._environment.begin(write=True) as txn:
                    return change(txn)
            except lmdb.MapFullError:
                self._environment.set_mapsize(self._environment.info()["map_size"] * 2)
            except lmdb.Error as exc:
                raise StoreError(f"{self.path}: cannot be written: {exc}") from exc

    def close(self) -> None:
        """Unmap the file; every use after it is an error."""
        self._environment.close()


_readers: dict[Path, LmdbFile] = {}  # LMDB refuses to open a file twice in one process, so that readers share it
_readers_lock = Lock()


def join_readers(path: Path, databases: Sequence[str]) -> LmdbFile:
    """A published file, opened by the first of its readers in this process. End with `leave_readers`.

    Raises:
        StoreError: it cannot be opened, or another file has taken its place since its first reader opened it.
    """
    path = path.resolve()
    with _readers_lock:
        file = _readers.get(path)
        if file is None:
            file = _readers[path] = LmdbFile(path, databases, writable=False)
        elif not path.exists() or path.stat().st_ino != file.inode:
            raise StoreError(f"{path}: was replaced while an index of this process has it open; close that index first")
        file.users += 1
        return file


def leave_readers(file: LmdbFile) -> None:
    """The last reader of a file unmaps it."""
    with _readers_lock:
        file.users -= 1
        if file.users == 0:
            del _readers[file.path]
            file.close()


def _open_environment(path: Path, *, writable: bool, databases: int) -> lmdb.Environment:
    existing_bytes = path.stat().st_size if path.exists() else 0
    try:
        return lmdb.open(
            str(path),
            subdir=False,
            readonly=not writable,
            lock=writable,  # a published file never changes, so that readers need no lock file beside it
            create=writable,
            max_dbs=databases,
            map_size=max(INITIAL_MAP_BYTES, 2 * existing_bytes),
            readahead=False,
            max_readers=1024,
        )
    except lmdb.Error as exc:
        raise StoreError(f"{path}: cannot be opened: {exc}") from exc
