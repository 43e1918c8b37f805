"""Stored passages that a generation no longer shows: deleted ones, and older texts of replaced ones. Written by
`delete` and `add` (`indexer/change`).

Their bytes stay in the generation's segments, which never change, until a new base is written without them. One file:

    magic 4 B · version u16 · crc32 u32 of all after it · n u32
    ordinals i64 × n, rising · flags u8 × n (1: deleted, 0: replaced) · key lengths u16 × n · keys, end to end
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import StoreError
from kalm_cache.process.system import refused

TOMBSTONES_FILE = "hidden.bin"  # its name on disk from the first version
_MAGIC, _VERSION = b"KLMH", 1
_HEADER = struct.Struct("<4sHI")
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True, eq=False)
class Tombstones:
    """Ordinals (n,) int64, rising; the key of each; whether it was deleted (n,) bool, else replaced."""

    ordinals: NDArray[np.int64]
    keys: list[bytes]
    deleted: NDArray[np.bool_]

    @staticmethod
    def nothing() -> Tombstones:
        """Everything that is stored is shown."""
        return Tombstones(np.empty(0, np.int64), [], np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.keys)

    def adding(self, passages: list[tuple[int, bytes, bool]]) -> Tombstones:
        """With more of them: (ordinal, key, deleted)."""
        flags = self.deleted.tolist()
        every = sorted({*zip(self.ordinals.tolist(), self.keys, flags, strict=True), *passages})
        ordinals = np.array([ordinal for ordinal, _, _ in every], np.int64)
        return Tombstones(ordinals, [key for _, key, _ in every], np.array([flag for _, _, flag in every], np.bool_))

    def between(self, first: int, end: int) -> Tombstones:
        """Those whose ordinals are in [first, end)."""
        start, stop = np.searchsorted(self.ordinals, [first, end])
        return Tombstones(self.ordinals[start:stop], self.keys[start:stop], self.deleted[start:stop])

    def of_keys(self, wanted: Callable[[bytes], bool]) -> Tombstones:
        """Those whose keys are wanted."""
        kept = np.fromiter(map(wanted, self.keys), np.bool_, len(self))
        keys = [key for key, stays in zip(self.keys, kept.tolist(), strict=True) if stays]
        return Tombstones(self.ordinals[kept], keys, self.deleted[kept])

    def outside(self, first: int, end: int) -> Tombstones:
        """Those whose ordinals are not in [first, end)."""
        kept = (self.ordinals < first) | (self.ordinals >= end)
        keys = [key for key, stays in zip(self.keys, kept.tolist(), strict=True) if stays]
        return Tombstones(self.ordinals[kept], keys, self.deleted[kept])

    def pack(self) -> bytes:
        """As a file."""
        content = b"".join(
            (
                _COUNT.pack(len(self)),
                self.ordinals.astype("<i8").tobytes(),
                self.deleted.astype(np.uint8).tobytes(),
                np.array([len(key) for key in self.keys], "<u2").tobytes(),
                *self.keys,
            )
        )
        return _HEADER.pack(_MAGIC, _VERSION, zlib.crc32(content)) + content


def unpack_tombstones(file: bytes, name: str) -> Tombstones:
    """Inverse of `Tombstones.pack`. Raises `StoreError` that begins with `name`."""
    if len(file) < _HEADER.size + _COUNT.size:
        raise StoreError(f"{name}: {len(file)} bytes are no list of tombstones; run kalm-cache verify")
    magic, version, crc = _HEADER.unpack_from(file)
    content = file[_HEADER.size :]
    if (magic, version, crc) != (_MAGIC, _VERSION, zlib.crc32(content)):
        raise StoreError(f"{name}: checksum mismatch; run kalm-cache verify")
    (count,) = _COUNT.unpack_from(content)
    if _COUNT.size + 11 * count > len(content):
        raise StoreError(f"{name}: it says {count} tombstones, more than it holds; run kalm-cache verify")
    ordinals = np.frombuffer(content, "<i8", count, _COUNT.size)
    flags = np.frombuffer(content, np.uint8, count, _COUNT.size + 8 * count)
    lengths = np.frombuffer(content, "<u2", count, _COUNT.size + 9 * count)
    if (
        _COUNT.size + 11 * count + int(lengths.sum(dtype=np.int64)) != len(content)
        or (ordinals[1:] <= ordinals[:-1]).any()
    ):
        raise StoreError(f"{name}: its ordinals or the lengths of its keys make no sense; run kalm-cache verify")
    ends = (_COUNT.size + 11 * count + np.cumsum(lengths, dtype=np.int64)).tolist()
    starts = [_COUNT.size + 11 * count, *ends[:-1]]
    keys = [content[start:end] for start, end in zip(starts, ends, strict=False)]
    return Tombstones(ordinals.astype(np.int64), keys, flags.astype(np.bool_))


def write_tombstones(folder: Path, tombstones: Tombstones) -> None:
    """Make these the tombstones of a generation that is being built; of none, there is no file. Raises `OSError`."""
    path = folder / TOMBSTONES_FILE
    path.unlink(missing_ok=True)
    if len(tombstones):
        path.write_bytes(tombstones.pack())


def read_tombstones(folder: Path) -> Tombstones:
    """The tombstones of the generation in `folder`. Raises `StoreError`."""
    path = folder / TOMBSTONES_FILE
    try:
        return unpack_tombstones(path.read_bytes(), str(path))
    except FileNotFoundError:
        return Tombstones.nothing()
    except OSError as exc:
        raise StoreError(f"{path}: cannot be read; {refused(exc, path)}") from exc
