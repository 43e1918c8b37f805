"""Where a text cache may lie, and which of its files is the live one. Knows nothing of what is in them.

A cache is a folder. Its live file is in the sub-folder of the highest number; `trim` and `clear` put a new one beside
it and remove the old one, which its readers leave when they look next.
"""

from __future__ import annotations

from pathlib import Path

from kalm_cache.errors import StoreError
from kalm_cache.system import file_system_of, is_network

FIRST = 1


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


def require_local(folder: Path) -> None:
    """Raise `StoreError` for a folder on a network file system: LMDB's locks and maps do not hold between machines."""
    kind = file_system_of(folder)
    if is_network(kind):
        raise StoreError(
            f"{folder}: is on a network file system ({kind}), where several machines would spoil the cache; "
            "use a local disk, or set text_cache_any_file_system where one machine alone uses it"
        )
