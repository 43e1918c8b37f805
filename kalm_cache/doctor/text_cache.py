"""The check of a text cache's folder: whether it can be written, where it lies, and whether its size fits the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kalm_cache.doctor.check import Report
from kalm_cache.settings import Settings
from kalm_cache.storage.text_cache.place import folder_of, live_number, require_local

GIB = 2**30


def check_text_cache(settings: Settings) -> Report:
    """The folder that the settings name, if they name one.

    Raises:
        StoreError: it is on a network file system.
    """
    if not settings.text_cache:
        return Report("none")
    folder = Path(settings.text_cache).expanduser()
    if not settings.text_cache_any_file_system:
        require_local(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    taken, free = _taken(folder), shutil.disk_usage(existing).free
    wanted = int(settings.text_cache_gib * GIB)
    found = f"{folder}: {taken / GIB:.2f} of {settings.text_cache_gib:g} GiB, {free / GIB:.1f} GiB free on its disk"
    warn = []
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        warn.append(f"{existing} cannot be written, so that no text is kept: let this user write it")
    if taken + free < wanted:
        fits = (taken + free) * 0.9 / GIB
        warn.append(f"the disk fills before the cache does, and nothing more is kept: set text_cache_gib to {fits:.2f}")
    return Report(found, warn=warn)


def _taken(folder: Path) -> int:
    """Bytes of the live file."""
    number = live_number(folder)
    data = None if number is None else folder_of(folder, number) / "data.mdb"
    return data.stat().st_size if data is not None and data.is_file() else 0
