"""Files that are either whole or not there: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

_BLOCK = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step, durably."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(beside, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one folder and fsync that folder, so that the new name survives a power cut."""
    source.replace(target)
    sync(target.parent)


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
