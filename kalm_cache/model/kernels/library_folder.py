"""The folder of compiled kernels: files that vouch for themselves, in a place where nobody else can put one.

A file's name ends in the SHA-256 of its content, so that it is written in one step, and one that was cut, or never
reached the disk, is never loaded: a library that is not whole ends the process. Knows nothing of compilers.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

CACHE_HOME = "XDG_CACHE_HOME"


class NoKernelsError(Exception):
    """Why there are no compiled kernels, and what to do: one line."""


def cache_folder() -> Path:
    """The folder of compiled kernels. Raises `RuntimeError` where there is no home folder."""
    return Path(os.environ.get(CACHE_HOME) or Path.home() / ".cache") / "kalm-cache"


def own_folder() -> Path:
    """`cache_folder`, made if it is not there.

    Raises:
        OSError: it cannot be made.
        NoKernelsError: others can put files into it, or nothing in it can be loaded.
    """
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The folders above need no check: whoever renames this one and makes another is that one's owner
    problem = _foreign(folder.stat())
    if problem:
        raise NoKernelsError(
            f"{folder} {problem}, and what is loaded from it runs as you: set {CACHE_HOME} to a folder of your own"
        )
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
        raise NoKernelsError(f"{folder} is mounted noexec, no library is loaded from there: set {CACHE_HOME} elsewhere")
    return folder


def find(folder: Path, name: str) -> Path | None:
    """The file that was kept under `name`; one that is damaged or not this user's is removed. Raises `OSError`."""
    for path in sorted(folder.glob(f"{name}-*.so")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and not _foreign(status) and path == _path_of(folder, name, path):
            return path
        path.unlink(missing_ok=True)
    return None


def keep(folder: Path, name: str, made: Path) -> Path:
    """Move a finished file, which is in the same file system, into the folder. Raises `OSError`."""
    path = _path_of(folder, name, made)
    _sync(made)
    made.replace(path)  # in one step: two processes that compile at once never load half a file
    _sync(folder)
    return path


def _path_of(folder: Path, name: str, content: Path) -> Path:
    with content.open("rb") as file:
        return folder / f"{name}-{hashlib.file_digest(file, 'sha256').hexdigest()}.so"


def _foreign(status: os.stat_result) -> str | None:
    """How others could have put it there, if they could."""
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
