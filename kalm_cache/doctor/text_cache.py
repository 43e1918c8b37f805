"""The check of a text cache: whether its folder can be written, where it lies, whether its size fits, and it opens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kalm_cache.doctor.check import Report
from kalm_cache.errors import StoreError
from kalm_cache.settings import Settings, idle_settings
from kalm_cache.storage.text_cache.cache_file import LEAST_BYTES, CacheFile
from kalm_cache.storage.text_cache.place import DATA, folder_of, live_number, require_local

GIB = 2**30


def check_text_cache(settings: Settings) -> Report:
    """The folder that the settings name, if they name one.

    Raises:
        StoreError: it is on a network file system.
    """
    if not settings.text_cache:
        idle = idle_settings(settings)
        return Report("none", warn=tuple(f"{name} has no effect: name a folder in text_cache" for name in idle))
    folder = Path(settings.text_cache).expanduser()
    if not settings.text_cache_any_file_system:
        require_local(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    taken, free = _taken(folder), shutil.disk_usage(existing).free
    wanted = int(settings.text_cache_gib * GIB)
    found = f"{folder}: {taken / GIB:.2f} of {settings.text_cache_gib:g} GiB, {free / GIB:.1f} GiB free on its disk"
    warn = _damage(folder)
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        warn.append(f"{existing} cannot be written, so that no text is kept: let this user write it")
    if taken + free < wanted:
        fits = (taken + free) * 0.9 / GIB
        warn.append(f"the disk fills before the cache does, and nothing more is kept: set text_cache_gib to {fits:.2f}")
    if taken > wanted:
        warn.append(f"the file is larger than that: kalm-cache cache trim --gib {settings.text_cache_gib:g}")
    return Report(found, warn=warn)


def _taken(folder: Path) -> int:
    """Bytes of the live file."""
    number = live_number(folder)
    return 0 if number is None else (folder_of(folder, number) / DATA).stat().st_size


def _damage(folder: Path) -> list[str]:
    """Why the live file does not open, if it does not."""
    number = live_number(folder)
    if number is None:
        return []
    try:
        CacheFile(folder_of(folder, number), max(_taken(folder), LEAST_BYTES), writable=False).close()
    except StoreError as exc:
        return [str(exc)]
    return []
