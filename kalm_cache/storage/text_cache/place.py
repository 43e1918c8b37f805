"""Where a text cache may lie, and which of its files is the live one. Knows nothing of what is in them.

A cache is a folder. Its live file is in the sub-folder of the highest number; `trim` and `clear` put a new one beside
it and remove the old one, which its readers leave when they look next. Each new file is written in a folder that gets
its number at the end, so that a live file is a whole one. What a killed process leaves goes when the cache opens next.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.storage.durable import rename_durably, sync_tree
from kalm_cache.storage.locks import build_lock
from kalm_cache.system import file_system_of, is_network

FIRST = 1
BUILDING = ".building"


def live_number(folder: Path) -> int | None:
    """The number of the live file; `None` where there is none yet."""
    try:
        numbers = [int(entry.name) for entry in folder.iterdir() if is_number(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return max(numbers, default=None)


def is_number(name: str) -> bool:
    """Whether a sub-folder of that name holds a file of the cache; all others are somebody else's."""
    return len(name) == 6 and name.isascii() and name.isdigit()


def folder_of(folder: Path, number: int) -> Path:
    """The sub-folder of a file."""
    return folder / f"{number:06}"


@contextmanager
def new_file(folder: Path, number: int) -> Iterator[Path]:
    """An empty folder to write a file in; it is the live one when the block ends, or none. Under the folder's lock."""
    building = folder / f"{number:06}{BUILDING}"
    shutil.rmtree(building, ignore_errors=True)  # of an interrupted run
    building.mkdir()
    yield building
    sync_tree(building)
    rename_durably(building, folder_of(folder, number))


def remove_left_behind(folder: Path) -> None:
    """Remove what killed processes left, replaced files and unfinished ones, unless someone changes the folder now."""
    with suppress(StoreError, OSError):
        if _left_behind(folder):
            with build_lock(folder):
                for left in _left_behind(folder):
                    shutil.rmtree(left, ignore_errors=True)


def _left_behind(folder: Path) -> list[Path]:
    live = live_number(folder) or 0
    numbered = [path for path in folder.iterdir() if is_number(path.name.removesuffix(BUILDING))]
    return [path for path in numbered if path.suffix == BUILDING or int(path.name) < live]


def require_free(folder: Path) -> None:
    """Raise `UsageError` where the name of the folder is a file's, or an index is in it."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder for the text cache")
    if (folder / "CURRENT").is_file():
        raise UsageError(f"{folder}: is the folder of an index; name another one for the text cache")


def require_local(folder: Path) -> None:
    """Raise `StoreError` for a folder on a network file system: LMDB's locks and maps do not hold between machines."""
    kind = file_system_of(folder)
    if is_network(kind):
        raise StoreError(
            f"{folder}: is on a network file system ({kind}), where several machines would spoil the cache; "
            "use a local disk, or set text_cache_any_file_system where one machine alone uses it"
        )
