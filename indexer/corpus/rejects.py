"""Rejected corpus lines → a file that survives a kill, and a summary. Knows nothing of how lines are read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import TracebackType
from typing import TextIO

from indexer.corpus import RejectedLine
from kalm_cache.errors import KalmCacheError, UsageError
from kalm_cache.process.system import describe

_SHOWN = 10


class ErrorsFile:
    """Counts rejected lines, keeps the first 10, and writes each as one JSON line to `path`, or nowhere if None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.count = 0
        self.first: list[RejectedLine] = []
        self._file: TextIO | None = None

    def __enter__(self) -> ErrorsFile:
        """Create the file, in place of an older one.

        Raises:
            UsageError: it cannot be created.
        """
        if self.path is not None:
            try:
                # backslashreplace: half a surrogate pair, as in odd file names, becomes the JSON escape \udcff.
                self._file = self.path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace", newline="\n")
            except OSError as exc:
                raise UsageError(f"cannot write --errors {describe(exc)}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, line: RejectedLine) -> None:
        """Count the line and write it at once: line buffering hands it to the system at its end.

        Raises:
            KalmCacheError: the disk is full or the file went away.
        """
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(line)
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(dataclasses.asdict(line), ensure_ascii=False) + "\n")
        except OSError as exc:
            raise KalmCacheError(f"cannot write --errors {describe(exc)}") from exc
