"""Files and standard input → plain bytes, decompressed as they are read. Knows nothing of lines or fields."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import zstandard

from kalm_cache.errors import CorpusError
from kalm_cache.process.system import describe

Compression = Literal["gzip", "zstd"]
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}  # by a file's suffix
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError)
# zstd packs at most 128 KiB into 4 bytes, so one piece expands to at most 64 MiB, whoever made the file.
_ZSTD_PIECE_BYTES = 2048
_ZSTD_MAX_WINDOW_BYTES = 2**31  # what `zstd --long=31` writes; the library's own default refuses such files


@contextmanager
def open_file(path: Path, compression: Compression | None) -> Iterator[io.BufferedIOBase]:
    """The file's decompressed bytes.

    Raises:
        CorpusError: the file cannot be opened, or should be compressed and is empty.
    """
    with open_path(path) as file:
        yield decompressed(file, str(path), compression)


def open_path(path: Path) -> io.BufferedReader:
    """The file's bytes. Raises `CorpusError`: it cannot be opened."""
    try:
        return path.open("rb")
    except OSError as exc:
        raise CorpusError(f"cannot open {describe(exc)}") from exc


def decompressed(file: io.BufferedReader, name: str, compression: Compression | None) -> io.BufferedIOBase:
    """What a file's bytes stand for.

    Raises:
        CorpusError: it should be compressed and is empty.
    """
    if compression and not file.peek(1):
        raise CorpusError(f"{name} is empty, not even {compression}'s header is there; download or write it again")
    return _decompressed(file, compression)


@contextmanager
def open_stdin(stdin: BinaryIO) -> Iterator[io.BufferedIOBase]:
    """Standard input's bytes, decompressed if they begin as gzip or zstd do; `stdin` stays open."""
    buffered: io.BufferedReader = io.BufferedReader(cast(io.RawIOBase, stdin))
    try:
        yield _decompressed(buffered, _sniff(buffered))
    finally:
        buffered.detach()  # or the garbage collector would close the caller's stream


def _sniff(stream: io.BufferedReader) -> Compression | None:
    try:
        head = stream.peek(4)[:4]
    except OSError as exc:
        raise CorpusError(f"cannot read standard input: {exc.strerror or exc}") from exc
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    is_skippable_frame = head[1:] == b"\x2a\x4d\x18" and head[0] >> 4 == 5  # what pzstd begins with
    return "zstd" if head == b"\x28\xb5\x2f\xfd" or is_skippable_frame else None


def _decompressed(stream: io.BufferedReader, compression: Compression | None) -> io.BufferedIOBase:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stream)
    return io.BufferedReader(_ZstdStream(stream)) if compression == "zstd" else stream


class _ZstdStream(io.RawIOBase):
    """Decompressed zstd frames; zstandard's own stream_reader would take a truncated file for a short one."""

    def __init__(self, source: io.BufferedReader) -> None:
        self._source = source
        self._frame = _new_frame()
        self._in_frame = False
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        """True, as io.BufferedReader asks for."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is 3.12's
        """Fill the start of `buffer`; 0 at the end.

        Raises:
            EOFError: the file ends inside a frame.
            zstandard.ZstdError: the bytes are not zstd, or damaged.
        """
        while not self._plain:
            if not self._decompress_piece():
                return 0
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _decompress_piece(self) -> bool:
        piece = self._compressed or self._source.read(_ZSTD_PIECE_BYTES)
        if not piece:
            if self._in_frame:
                raise EOFError("the file ends inside a zstd frame")
            return False
        self._plain = memoryview(self._frame.decompress(piece))
        self._in_frame, self._compressed = not self._frame.eof, b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, _new_frame()
        return True


def _new_frame() -> zstandard.ZstdDecompressionObj:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES).decompressobj()
