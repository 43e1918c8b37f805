"""Bytes → numbered lines, in constant memory. Knows nothing of what a line holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kalm_cache.errors import CorpusError
from kalm_cache.text.streams import COMPRESSIONS, READ_ERRORS, open_file

MAX_RAW_CHARS = 200  # of a rejected line, as shown to the user
MAX_LINE_BYTES = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_RAW_BYTES = 4 * MAX_RAW_CHARS  # a character takes at most 4 bytes of UTF-8


class BadLineError(ValueError):
    """A line that cannot be used: why, and its doc id if it could be read. Who reads the lines adds the place."""

    def __init__(self, reason: str, doc_id: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.doc_id = doc_id


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


def for_each_line(path: Path, read: Callable[[str, int], None]) -> None:
    """Call `read` with every line that is not blank, without its end, and its number from 1.

    Raises:
        CorpusError: the file cannot be read, or `read` raised a `ValueError`; says `file:line`.
    """
    with open_file(path, COMPRESSIONS.get(path.suffix)) as stream:
        for line in read_lines(stream, str(path)):
            try:
                text = line.text().rstrip("\r\n")
                if text.strip():
                    read(text, line.number)
            except (ValueError, RecursionError) as exc:  # RecursionError: brackets nested thousands deep
                raise CorpusError(f"{line.location}: {exc}") from exc


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
