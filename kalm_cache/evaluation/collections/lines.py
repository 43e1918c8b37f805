"""Lines of text files, plain or gzipped, with errors that name file and line. Knows nothing of what they hold."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kalm_cache.errors import CorpusError

_READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


def for_each_line(path: Path, read: Callable[[str, int], None]) -> None:
    """Call `read` with every line that is not blank, and its number from 1; its `ValueError`s get the place.

    Raises:
        CorpusError: the file cannot be read, or `read` raised a `ValueError`; says `file:line`.
    """
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                read(line, number)
            except (ValueError, RecursionError) as exc:  # RecursionError: brackets nested thousands deep
                raise CorpusError(f"{path}:{number}: {exc}") from exc


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\r\n")
                number += 1
    except _READ_ERRORS as exc:
        raise CorpusError(f"{path}: cannot be read beyond line {number}: {exc}") from exc
