"""Standard input, output and error as the commands may rely on them. Knows nothing of what is read or written.

- All three are open: a file that is opened later would else get the number of a closed one, and log lines be written
  into it. What was closed fails when it is used, standard error excepted, which swallows.
- Both outputs take every character: what their encoding lacks becomes ASCII, and no name is lost.
- Standard output's errors name it, and come once. Where nobody reads it any more, the process ends in silence, as the
  signal SIGPIPE would end it.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

STDOUT = "standard output"
EXIT_PIPE = 141  # 128 + SIGPIPE
_LIKE = str.maketrans({"↑": "^", "↓": "v", "→": ">", "…": ".", "·": "-", "✓": "*", "−": "-", "─": "-", "━": "-"})
_ERRORS = "kalm-cache-like"


class _NamedOutput(io.FileIO):
    def write(self, data: bytes | memoryview, /) -> int | None:  # type: ignore[override]  # Buffer is 3.12's
        try:
            return super().write(data)
        except OSError as exc:
            _drop_what_follows(self.fileno())
            if exc.errno == errno.EPIPE:
                raise SystemExit(EXIT_PIPE) from exc
            raise OSError(exc.errno, exc.strerror, STDOUT) from exc


class _Swallowing(io.FileIO):
    def write(self, data: bytes | memoryview, /) -> int | None:  # type: ignore[override]  # likewise
        """A log that cannot be written stops no work."""
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def open_streams() -> None:
    """Open what was closed, and set the encoding's errors; once, before anything is opened or written."""
    for number, way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _reserve(number, way)
    codecs.register_error(_ERRORS, _ascii_like)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _text(_NamedOutput(1, "w", closefd=False), sys.stdout, _ERRORS)
    sys.stderr = _text(_Swallowing(2, "w", closefd=False), sys.stderr, _ERRORS, line_buffering=True)


def _reserve(number: int, way: int) -> None:
    """Open the null device under this number where it is closed; read where one writes, so that using it fails."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, way)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def _drop_what_follows(number: int) -> None:
    """What is still in buffers would fail once more at the end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _text(raw: io.FileIO, before: TextIO | None, errors: str, line_buffering: bool = False) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    buffering = line_buffering or raw.isatty() or bool(getattr(before, "write_through", False))
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=buffering)


def _ascii_like(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_LIKE)
    return lacking.encode("ascii", "backslashreplace").decode("ascii"), error.end
