"""The segments of an index as if they held some passages alone: to who asks, the others are not there.

A tenant's view of an index is one. Whatever is asked by id, by ordinal or by content goes through here, so that no
answer can have another passage, nor tell that there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from kalm_cache.errors import DamagedRecordError
from kalm_cache.first_stage import Selection
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.storage.passage_store import PassageMeta, key_of

_T = TypeVar("_T")


class VisibleSegments(SegmentSet):
    """Shares the files of a `SegmentSet`, which closes them."""

    def __init__(self, whole: SegmentSet, selection: Selection) -> None:
        """`selection`: of the passages that are visible."""
        self.generation, self.segments = whole.generation, whole.segments
        self._first_ordinals, self._by_range = whole._first_ordinals, whole._by_range
        gone = [segment.tombstone_ordinals for segment in whole.segments]
        self._selection = Selection(np.setdiff1d(selection.ordinals, np.concatenate(gone)))

    def close(self) -> None:
        """Nothing: the whole does."""

    def __len__(self) -> int:
        return len(self._selection.ordinals)

    def find_doc_ids(self, ordinals: Iterable[int]) -> list[str | DamagedRecordError]:
        """See `SegmentSet.find_doc_ids`: an ordinal that is not visible is not there."""
        wanted = list(ordinals)
        visible = self._selection.mask(np.array(wanted, np.int64)).tolist()
        found = iter(super().find_doc_ids([one for one, is_visible in zip(wanted, visible, strict=True) if is_visible]))
        return [
            next(found) if is_visible else DamagedRecordError(f"ordinal {ordinal} is not there")
            for ordinal, is_visible in zip(wanted, visible, strict=True)
        ]

    def keys(self) -> Iterator[bytes]:
        """See `SegmentSet.keys`."""
        return iter(sorted(key_of(doc_id) for _, doc_id in self.ordinals()))

    def ordinals(self) -> Iterator[tuple[int, str]]:
        """See `SegmentSet.ordinals`."""
        visible = set(self._selection.ordinals.tolist())
        return ((ordinal, doc_id) for ordinal, doc_id in super().ordinals() if ordinal in visible)

    def ask(
        self, doc_ids: Sequence[str], find: Callable[[int, list[str]], Sequence[_T | DamagedRecordError | None]]
    ) -> list[_T | DamagedRecordError | None]:
        """See `SegmentSet.ask`: `None` of a passage that is not visible, or whose ordinal cannot be read."""
        metas = super().ask(doc_ids, lambda segment, some: self.segments[segment].store.metas(some))
        ordinals = np.array([one.ordinal if isinstance(one, PassageMeta) else -1 for one in metas], np.int64)
        rows = np.flatnonzero((ordinals >= 0) & self._selection.mask(np.maximum(ordinals, 0))).tolist()
        answers: list[_T | DamagedRecordError | None] = [None] * len(doc_ids)
        for row, answer in zip(rows, super().ask([doc_ids[row] for row in rows], find), strict=True):
            answers[row] = answer
        return answers
