"""Bytes → numbered lines, in constant memory. Knows nothing of what a line holds."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from indexer.corpus.streams import READ_ERRORS
from indexer.corpus.values import MAX_RAW_CHARS, BadLineError
from kalm_cache.errors import CorpusError

MAX_LINE_BYTES = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_RAW_BYTES = 4 * MAX_RAW_CHARS  # a character takes at most 4 bytes of UTF-8


@dataclass(frozen=True, slots=True)
class TextLine:
    """One physical line with its line end; of a line over 64 MiB, `is_too_long`, only the start is there."""

    file_name: str
    number: int  # from 1
    data: bytes
    is_too_long: bool = False

    @property
    def location(self) -> str:
        """`file:line`."""
        return f"{self.file_name}:{self.number}"

    @property
    def raw(self) -> str:
        """The line's start for reports; bytes that are not UTF-8 show as `\\xff`."""
        return self.data[:_RAW_BYTES].decode("utf-8", "backslashreplace").rstrip("\r\n")

    def text(self) -> str:
        """The whole line, its line end included.

        Raises:
            BadLineError: it is too long or not UTF-8.
        """
        if self.is_too_long:
            raise BadLineError(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; split the passage")
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as exc:
            wrong = f"byte 0x{self.data[exc.start]:02x} at offset {exc.start} of line {self.number}"
            raise BadLineError(f"not UTF-8: {wrong}; convert the file to UTF-8") from exc


def read_lines(stream: io.BufferedIOBase, file_name: str) -> Iterator[TextLine]:
    """The stream's lines, without a byte order mark at its start.

    Raises:
        CorpusError: the stream is damaged, truncated or unreadable; names the line reached.
    """
    number = 1
    try:
        while line := _next_line(stream, file_name, number):
            yield line
            number += 1
    except READ_ERRORS as exc:
        raise CorpusError(
            f"cannot read {file_name} beyond line {number - 1}: {exc}; write or download it again"
        ) from exc


def _next_line(stream: io.BufferedIOBase, file_name: str, number: int) -> TextLine | None:
    data = stream.readline(MAX_LINE_BYTES + 1)
    is_too_long = len(data) > MAX_LINE_BYTES
    if is_too_long:
        _skip_to_line_end(stream, data[-1:])
        data = data[:_RAW_BYTES]
    if not data:
        return None
    return TextLine(file_name, number, data.removeprefix(_BOM) if number == 1 else data, is_too_long)


def _skip_to_line_end(stream: io.BufferedIOBase, last: bytes) -> None:
    while last and last != b"\n":
        last = stream.readline(2**20)[-1:]
