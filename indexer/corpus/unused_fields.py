"""The fields of a corpus that are no part of its passages, counted as its lines pass by. Knows nothing of formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from indexer.corpus.values import CorpusLine, RejectedLine

MOST_NAMES = 1000  # of which lines are counted: a corpus may have names without end
SHOWN_NAMES, SHOWN_CHARS = 20, 80


class UnusedFields:
    """Counts the lines that have each unused field."""

    def __init__(self) -> None:
        self._lines: Counter[str] = Counter()

    def watch(self, lines: Iterable[CorpusLine | RejectedLine]) -> Iterator[CorpusLine | RejectedLine]:
        """The lines, counted as they are taken."""
        for line in lines:
            for name in line.unused if isinstance(line, CorpusLine) else ():
                if name in self._lines or len(self._lines) < MOST_NAMES:
                    self._lines[name] += 1
            yield line

    def counts(self) -> dict[str, int]:
        """Lines by field, the 20 that most lines have; names are cut, and valid Unicode."""
        most = self._lines.most_common(SHOWN_NAMES)
        return {name[:SHOWN_CHARS].encode("utf-8", "backslashreplace").decode("utf-8"): n for name, n in most}
