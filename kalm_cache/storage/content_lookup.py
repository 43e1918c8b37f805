"""Content hash → ordinal, for a sealed segment: which of its passages has a given text. Knows no texts.

    magic 4 B · version u16 · crc32 u32 of all after it · n u32 · 2 B zero, so that what follows is aligned
    first halves of the hashes u64 × n, rising · second halves u64 × n · ordinals i64 × n      all little-endian

Made of what the store holds beside each passage, so that no text is read again. Who uses an answer compares it with the
passage's own hash: the file may be damaged.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kalm_cache.errors import StoreError
from kalm_cache.process.system import refused
from kalm_cache.storage.durable import write_atomically

CONTENTS_FILE = "contents.bin"
HASH_BYTES = 16
_HEAD = struct.Struct("<4sHI")
_COUNT = struct.Struct("<I2x")
_HALVES = struct.Struct(">QQ")  # a hash as two numbers that sort as its bytes do
COPIED_BYTES = 256 << 10  # a smaller file is read and keeps no descriptor open
_MAGIC, _VERSION = b"KLMT", 1
_ITEM_BYTES = HASH_BYTES + 8
_START = _HEAD.size + _COUNT.size


class ContentWriter:
    """Collects hashes and ordinals in any order: 24 bytes of memory a passage. `write` sorts and publishes them."""

    def __init__(self) -> None:
        self._hashes, self._ordinals = bytearray(), array("q")

    def add(self, content_hash: bytes, ordinal: int) -> None:
        """A passage of the segment."""
        self._hashes += content_hash
        self._ordinals.append(ordinal)

    def write(self, folder: Path) -> None:
        """Publish the segment's file. Of passages with one text the one of the lowest ordinal comes first."""
        ordinals = np.frombuffer(self._ordinals.tobytes(), "<i8")
        halves = np.frombuffer(bytes(self._hashes), ">u8").reshape(-1, 2)  # (n, 2)
        order = np.lexsort((ordinals, halves[:, 1], halves[:, 0]))
        columns = (halves[order, 0].astype("<u8"), halves[order, 1].astype("<u8"), ordinals[order])
        content = _COUNT.pack(len(order)) + b"".join(column.tobytes() for column in columns)
        write_atomically(folder / CONTENTS_FILE, _HEAD.pack(_MAGIC, _VERSION, zlib.crc32(content)) + content)


class ContentLookup:
    """The file of one segment, in memory or mapped; a segment of an earlier version has none, and finds nothing."""

    def __init__(self, folder: Path) -> None:
        """Open a segment's file. Raises `StoreError` where it is of another format, or not as long as it says."""
        path = folder / CONTENTS_FILE
        self._columns = np.empty((3, 0), "<u8")  # first halves, second halves, ordinals (3, n)
        if not path.is_file():
            return
        try:
            content = np.fromfile(path, np.uint8) if path.stat().st_size <= COPIED_BYTES else np.memmap(path, mode="r")
            magic, version, _ = _HEAD.unpack(content[: _HEAD.size].tobytes())
            (count,) = _COUNT.unpack(content[_HEAD.size : _START].tobytes())
        except (OSError, ValueError, struct.error) as exc:
            raise StoreError(f"{path}: cannot be read; {refused(exc, path)}") from exc
        if (magic, version) != (_MAGIC, _VERSION) or len(content) != _START + _ITEM_BYTES * count:
            raise StoreError(f"{path}: no content lookup of this version; run kalm-cache verify")
        self._columns = content[_START:].view("<u8").reshape(3, count)

    def find(self, content_hashes: Sequence[bytes]) -> list[list[int]]:
        """The ordinals of the passages that have each content, rising; mostly none or one."""
        return [self._find(*_HALVES.unpack(content_hash)) for content_hash in content_hashes]

    def _find(self, first: int, second: int) -> list[int]:
        firsts, seconds, ordinals = self._columns
        start, stop = (int(np.searchsorted(firsts, np.uint64(first), side)) for side in ("left", "right"))
        return [int(ordinals[i]) for i in range(start, stop) if int(seconds[i]) == second]
