"""Files that are either whole or not there: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

_BLOCK = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, durably."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
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


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below and including `folder`."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
