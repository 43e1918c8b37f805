"""Files that appear whole or not at all: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def publish_file(written: Path, target: Path) -> None:
    """Move a finished file to its place; after a crash `target` is the old file or the new one, never half of one."""
    _fsync(written)
    written.replace(target)
    _fsync(target.parent)


def publish_folder(written: Path, target: Path) -> None:
    """Move a finished flat folder to its place; a folder that is there already is removed first."""
    for path in written.iterdir():
        _fsync(path)
    _fsync(written)
    if target.exists():
        shutil.rmtree(target)
    written.rename(target)
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
