"""Copies of an index folder in which files that have several names still do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def copy_index(source: Path, target: Path) -> Path:
    """Copy a folder; names that are links of one file there are links of one file in the copy. Returns `target`."""
    copied: dict[int, str] = {}

    def copy(path: str, to: str) -> str:
        inode = Path(path).stat().st_ino
        if inode in copied:
            os.link(copied[inode], to)
        else:
            copied[inode] = shutil.copyfile(path, to)
        return to

    return Path(shutil.copytree(source, target, copy_function=copy))
