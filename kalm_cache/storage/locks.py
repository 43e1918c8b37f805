"""Locks between processes (flock): who may change an index folder, and which generations are being read.

A lock ends with its process, whatever ends that. Knows nothing of what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kalm_cache.errors import IndexLockedError, StoreError
from kalm_cache.process.system import explained

LOCK = "LOCK"
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # NFS says EACCES, too


@contextmanager
def build_lock(index: Path) -> Iterator[None]:
    """Hold the right to change this index folder; it is made if it is not there.

    Raises:
        IndexLockedError: another process has it.
        StoreError: the folder cannot be written, or its file system has no locks.
    """
    is_new = not index.exists()
    path = index / LOCK
    try:
        index.mkdir(parents=True, exist_ok=True)
        has_file = path.exists()
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as exc:
        raise StoreError(f"{index}: cannot be written: {explained(exc, index)}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        if exc.errno in _HELD:
            raise IndexLockedError(f"{index}: another process is changing it; wait for it to finish") from exc
        _take_back(index, path, has_file, is_new)
        raise StoreError(
            f"{index}: its file system refuses locks ({exc.strerror}), and without one two jobs could spoil each "
            "other's work; put the index on a local disk, or mount NFS with its lock service (not nolock)"
        ) from exc
    try:
        yield
    finally:
        os.close(descriptor)  # closing releases the lock


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold a lock file, made if it is not there; wait while another process holds it. Raises `OSError`."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _take_back(index: Path, path: Path, has_file: bool, is_new: bool) -> None:
    """Leave the folder as it was found."""
    with suppress(OSError):
        if not has_file:
            path.unlink()
        if is_new:
            index.rmdir()


class SharedLock:
    """A file that must not be deleted while this is held; works where nothing can be written."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; twice does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def share(path: Path) -> SharedLock | None:
    """Take part in a file's use; `None` where it is being deleted, or is gone.

    Where the file system refuses locks, it is used without: there, nothing is deleted either (see `exclude`).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe in its place would block
    except FileNotFoundError:
        return None
    except OSError:  # whoever reads it says why
        return SharedLock(None)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        return None if exc.errno in _HELD else SharedLock(None)
    if os.fstat(descriptor).st_nlink == 0:  # deleted between opening and locking
        os.close(descriptor)
        return None
    return SharedLock(descriptor)


@contextmanager
def exclude(path: Path) -> Iterator[bool]:
    """Whether nobody shares the file, and nobody can while this lasts.

    Raises:
        StoreError: the file system refuses locks, so that nobody can tell.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)  # NFS wants it writable for an exclusive lock
    except FileNotFoundError:
        yield True
        return
    except OSError as exc:
        raise StoreError(f"{path}: cannot be opened: {explained(exc, path)}") from exc
    try:
        yield _is_free(descriptor, path)
    finally:
        os.close(descriptor)


def _is_free(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in _HELD:
            return False
        raise StoreError(
            f"{path}: its file system refuses locks ({exc.strerror}): whether it is being read cannot be told; "
            "close every reader and remove old generations by hand"
        ) from exc
    return True
