"""Texts that commands are given: arguments that must be Unicode, and files with one text a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from kalm_cache.errors import CorpusError, UsageError
from kalm_cache.text.lines import for_each_line

CALLED_ANYTHING = frozenset({"corpus"})  # a string that names a file, as other files are `Path`s
CALLED_IN_UTF8 = frozenset({"index", "index_root"})  # LMDB and FAISS open what is below them


def with_unicode_texts(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which refuses arguments that are no UTF-8; files may be called anything. Raises `UsageError`."""

    @wraps(command)
    def checked(**values: Any) -> None:
        for name, value in values.items():
            for text in () if name in CALLED_ANYTHING else _texts_in(str(value) if name in CALLED_IN_UTF8 else value):
                _require_unicode(name, text)
        command(**values)

    return checked


def ids_of(ids: list[str] | None, one_id: list[str] | None, file: Path | None) -> list[str]:
    """The ids of `--ids` (split at commas), of `--id` and of `--ids-file` (as they are). Raises as `lines_in`."""
    split = [doc_id for group in ids or [] for doc_id in group.split(",") if doc_id]
    return [*split, *(one_id or []), *lines_in("--ids-file", file)]


def lines_in(option: str, file: Path | None) -> list[str]:
    """The lines of a UTF-8 file that are not blank; none where no file was given.

    Args:
        option: its flag, for errors.
        file: one text a line.

    Raises:
        UsageError: the file cannot be read as UTF-8 text.
    """
    lines: list[str] = []
    try:
        if file is not None:
            for_each_line(file, lambda line, _: lines.append(line))
    except CorpusError as exc:
        raise UsageError(f"{option} {file}: {exc}") from exc
    return lines


def _texts_in(value: Any) -> Iterator[str]:
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str):
            yield text


def _require_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        at = f"byte 0x{ord(text[exc.start]) - 0xDC00:02x} at character {exc.start}"
        raise UsageError(f"{name.replace('_', '-')} is not valid UTF-8: {at}, {text!a}") from exc
