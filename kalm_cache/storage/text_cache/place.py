"""Where a text cache may lie, and which of its files is the live one. Knows nothing of what is in them.

A cache is a folder. Its live file is in the sub-folder of the highest number; `trim` and `clear` put a new one beside
it and remove the old one, which its readers leave when they look next. Each new file is written in a folder that gets
its number at the end, so that a live file is a whole one. What a killed process leaves goes when the cache opens next.
Only LMDB's two files are removed, by name: whatever else lies there is somebody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.process.system import file_system_of, is_network
from kalm_cache.storage.durable import rename_durably, sync_tree
from kalm_cache.storage.locks import build_lock

BUILDING = ".building"
DATA, READERS = "data.mdb", "lock.mdb"


def live_number(folder: Path) -> int | None:
    """The number of the live file; `None` where there is none yet."""
    try:
        numbers = [int(path.name) for path in folder.iterdir() if is_number(path.name) and (path / DATA).is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return max(numbers, default=None)


def is_number(name: str) -> bool:
    """Whether a sub-folder of that name may hold a file of the cache; all others are somebody else's."""
    return len(name) == 6 and name.isascii() and name.isdigit()


def folder_of(folder: Path, number: int) -> Path:
    """The sub-folder of a file."""
    return folder / f"{number:06}"


@contextmanager
def new_file(folder: Path) -> Iterator[Path]:
    """An empty folder to write a file in; it is the live one when the block ends, or none. Under the folder's lock."""
    number = (live_number(folder) or 0) + 1
    while folder_of(folder, number).exists():  # somebody else's, or what a killed process left of a file
        number += 1
    building = folder / f"{number:06}{BUILDING}"
    remove_file(building)  # of an interrupted run
    building.mkdir(exist_ok=True)
    yield building
    sync_tree(building)
    rename_durably(building, folder_of(folder, number))


def remove_file(place: Path) -> None:
    """Remove a file of the cache, and its sub-folder if nothing else is in it."""
    for name in (DATA, READERS):
        (place / name).unlink(missing_ok=True)
    with suppress(OSError):
        place.rmdir()


def remove_left_behind(folder: Path) -> None:
    """Remove what killed processes left, replaced files and unfinished ones, unless someone changes the folder now."""
    with suppress(StoreError, OSError):
        if _left_behind(folder):
            with build_lock(folder):
                for left in _left_behind(folder):
                    remove_file(left)


def _left_behind(folder: Path) -> list[Path]:
    live = live_number(folder) or 0
    numbered = [path for path in folder.iterdir() if is_number(path.name.removesuffix(BUILDING)) and path.is_dir()]
    return [path for path in numbered if (path.suffix == BUILDING or int(path.name) < live) and _is_ours(path)]


def _is_ours(place: Path) -> bool:
    inside = {path.name for path in place.iterdir()}
    return not inside or bool(inside & {DATA, READERS})


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
