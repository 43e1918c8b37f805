"""INDEX/CURRENT: the name of the live generation, and a checksum, on one line. Knows nothing of generations.

    000002 crc32:bd33fbdb

Without the checksum, one flipped bit could name another generation that is there, and nobody would notice.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.foreign_files import is_generation_name, read_bounded
from kalm_cache.process.system import explained
from kalm_cache.storage.durable import write_atomically

CURRENT = "CURRENT"
MAX_BYTES = 1024


def current_name(index: Path) -> str:
    """The name of the live generation.

    Raises:
        IndexNotFoundError: nothing has been published in the folder.
        StoreError: the file cannot be read, or is damaged.
    """
    path = index / CURRENT
    try:
        content = read_bounded(path, MAX_BYTES)
    except FileNotFoundError as exc:
        way_out = f"run: kalm-cache index CORPUS --index {index}"
        raise IndexNotFoundError(f"{index}: no published index here; {way_out}") from exc
    except OSError as exc:
        raise StoreError(f"{path}: cannot be read: {explained(exc, path)}") from exc
    except ValueError as exc:
        raise StoreError(f"{path}: {exc}; {_way_out(index)}") from exc
    name = content.split(b" ")[0].decode("ascii", "replace")
    if content != _line(name):
        raise StoreError(f"{path}: checksum mismatch, which generation is live is not known; {_way_out(index)}")
    if not is_generation_name(name):  # a path would lead out of the index
        raise StoreError(f"{path}: {name[:60]!r} is no name of a generation, those are digits; {_way_out(index)}")
    return name


def write_current(index: Path, name: str) -> None:
    """Make a generation the live one, durably and in one step. Needs the build lock."""
    write_atomically(index / CURRENT, _line(name))


def _line(name: str) -> bytes:
    return f"{name} crc32:{zlib.crc32(name.encode()):08x}\n".encode()


def _way_out(index: Path) -> str:
    there = sorted(path.name for path in (index / "generations").glob("[0-9]*") if is_generation_name(path.name))
    if not there:
        return f"run: kalm-cache index CORPUS --index {index}"
    return f"make one live, the newest was published last: kalm-cache rollback --to {there[-1]} --index {index}"
