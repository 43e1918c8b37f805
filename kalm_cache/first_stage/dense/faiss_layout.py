"""Whether a FAISS file is as long as it says, before FAISS maps it: it reads on behind the end of a file that was cut.

Knows the lengths of the three indexes that `faiss_types` makes (FAISS 1.9 to 1.15), and what they lie in:

    IxMp   header · one of the three · ordinals
    IxFI   header · vectors                                                          flat
    IwSq   header · lists u64 · nprobe u64 · IxFI · direct map · quantizer · u64 · u8 · inverted lists
    IHNs   header · graph · IxSQ: header · quantizer · codes

A vector is its count, u64, and its items. What the numbers mean, FAISS checks.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_HEADER = struct.Struct("<iqqqBi")  # width, vectors, unused twice, trained, metric
_QUANTIZER = struct.Struct("<iifQQ")  # type, range statistic and its argument, width, bytes a code
_GRAPH_END = struct.Struct("<5i")
_COUNT = struct.Struct("<Q")
_GRAPH_ITEMS = (8, 4, 4, 8, 4)  # bytes an item of its five vectors
_HASHTABLE = 2  # a direct map's type


def check_length(path: Path) -> None:
    """Raise `ValueError` where a file ends before what it says that it holds; `OSError` where it cannot be read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        cursor = _Cursor(mapped)
        cursor.expect(b"IxMp")
        cursor.take(_HEADER)
        kind = bytes(cursor.skip(4))
        if kind not in _READERS:
            raise ValueError(f"it is a FAISS index of a kind that is not built here ({kind!r})")
        _READERS[kind](cursor)
        cursor.skip_vector(8)


class _Cursor:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 0

    def skip(self, size: int) -> bytes:
        """Go on; returns up to 8 bytes of what was there."""
        start, self._at = self._at, self._at + size
        if self._at > len(self._content):
            raise ValueError(f"it has {len(self._content)} bytes, and says that it holds more")
        return self._content[start : min(self._at, start + 8)]

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        start = self._at
        self.skip(layout.size)
        return layout.unpack_from(self._content, start)

    def expect(self, *kinds: bytes) -> bytes:
        kind = self.skip(4)
        if kind not in kinds:
            raise ValueError(f"it holds {kind!r} where FAISS has {kinds[0]!r}")
        return kind

    def count(self) -> int:
        return self.take(_COUNT)[0]

    def skip_vector(self, item_bytes: int) -> None:
        self.skip(self.count() * item_bytes)


def _flat(cursor: _Cursor) -> None:
    cursor.take(_HEADER)
    cursor.skip_vector(4)


def _quantizer(cursor: _Cursor) -> None:
    cursor.take(_QUANTIZER)
    cursor.skip_vector(4)


def _ivf(cursor: _Cursor) -> None:
    cursor.take(_HEADER)
    cursor.skip(16)
    cursor.expect(b"IxFI")
    _flat(cursor)
    direct_map = cursor.skip(1)[0]
    cursor.skip_vector(8)
    if direct_map == _HASHTABLE:
        cursor.skip_vector(16)
    _quantizer(cursor)
    cursor.skip(9)
    _lists(cursor)


def _lists(cursor: _Cursor) -> None:
    cursor.expect(b"ilar")
    lists, code_bytes = cursor.count(), cursor.count()
    each = cursor.expect(b"full", b"sprs")
    sizes = [cursor.count() for _ in range(min(cursor.count(), 2 * lists))]
    for size in sizes if each == b"full" else sizes[1::2]:
        cursor.skip(size * (code_bytes + 8))


def _hnsw(cursor: _Cursor) -> None:
    cursor.take(_HEADER)
    for item_bytes in _GRAPH_ITEMS:
        cursor.skip_vector(item_bytes)
    cursor.take(_GRAPH_END)
    cursor.expect(b"IxSQ")
    cursor.take(_HEADER)
    _quantizer(cursor)
    cursor.skip_vector(1)


_READERS = {b"IxFI": _flat, b"IwSq": _ivf, b"IHNs": _hnsw}
