"""Files that are either complete or not there: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kalm_cache.errors import StoreError
from kalm_cache.process.system import way_out

_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, durably."""
    beside = path.with_name(path.name + ".tmp")
    with _naming(beside), beside.open("wb") as file:
        file.write(content)
    publish_file(beside, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one folder and fsync that folder, so that the new name survives a power cut."""
    source.replace(target)
    sync(target.parent)


def publish_file(written: Path, target: Path) -> None:
    """Move a finished file to its place in the same folder; a crash leaves the old file or the new one."""
    sync(written)
    rename_durably(written, target)


def publish_folder(written: Path, target: Path) -> None:
    """Move a finished folder to its place in the same folder; one that is there already is removed first."""
    sync_tree(written)
    if target.exists():
        shutil.rmtree(target)
    rename_durably(written, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that never changes; where the file system has no hard links, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # of an interrupted run
    try:
        os.link(source, target)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name into errors of calls that know a descriptor alone."""
    try:
        yield
    except OSError as exc:
        if exc.filename is not None:
            raise
        raise OSError(exc.errno, exc.strerror, str(path)) from exc


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below and including `folder`, but for files that have another name.

    These are linked from where they were published (`link_or_copy`), and were synced before that.
    """
    for path in folder.rglob("*"):
        if path.is_dir() or path.stat().st_nlink == 1:
            sync(path)
    sync(folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the system refuses while `folder` is changed into a `StoreError` that names the file and a way out."""
    try:
        yield
    except OSError as exc:
        name = "" if exc.filename is None else os.fsdecode(exc.filename)
        where = name if Path(name).is_absolute() or str(folder) in name else f"{folder}: {name}".removesuffix(": ")
        advice = way_out(exc, folder)
        raise StoreError(
            f"{where}: {exc.strerror or exc}"
            + (f"; {advice}" if advice else "")
            + "; what was published is as it was: run the same command again"
        ) from exc
