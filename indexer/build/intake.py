"""Corpus lines -> windows of passages, without rejected lines and duplicate ids. Knows nothing of models.

Duplicates are found on disk, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from indexer.build.accepted_ids import Staging
from indexer.corpus import CorpusLine, RejectedLine
from kalm_cache.passage import Passage

WINDOW = 2048  # passages sorted by length together

Reject = Callable[[RejectedLine], None]
_T = TypeVar("_T")


def accepted_windows(
    lines: Iterable[CorpusLine | RejectedLine], staging: Staging, on_reject: Reject
) -> Iterator[list[Passage]]:
    """One pass over a corpus, into a fresh staging: its passages, `WINDOW` lines at a time; the rest to `on_reject`."""
    for window in batched(lines, WINDOW):
        good = [line for line in window if isinstance(line, CorpusLine)]
        firsts = dict(zip([line.location for line in good], staging.claim(good), strict=True))
        passages = []
        for line in window:
            if isinstance(line, RejectedLine):
                on_reject(line)
            elif (first := firsts[line.location]) is not None:
                on_reject(duplicate(line, first))
            else:
                passages.append(line.passage)
        yield passages


def duplicate(line: CorpusLine, first: str) -> RejectedLine:
    """The report of a line whose id was first met elsewhere."""
    reason = f"duplicate id, first at {first}; the first one is kept: give each passage an id of its own"
    return RejectedLine(line.location, reason, line.passage.doc_id, line.passage.text[:200])


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items, the last one shorter (itertools.batched needs Python 3.12)."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
