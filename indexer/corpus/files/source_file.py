"""One file of a corpus, wherever it lies."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from indexer.corpus.files.kinds import Kind


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, not opened yet.

    name: its path or URL, as locations show it.
    kind: how it is read.
    open: its bytes, to be closed by the caller; the buffer's `raw` can be read anywhere in the file. Raises
        `CorpusError` or `StoreError`.
    """

    name: str
    kind: Kind
    open: Callable[[], io.BufferedReader]
