"""The metadata of an open index, over all its segments: by passage, and filters over it. Knows nothing of searches."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.metadata import Columns, Filter, Schema, Value, parse_filter
from kalm_cache.metadata.column_types import described
from kalm_cache.storage.passage_store import PassageMeta


class StoredMetadata:
    """Opened with a `SegmentSet`, and of use as long as that is open. Several threads may ask it."""

    def __init__(self, segments: SegmentSet, opened: StoredMetadata | None = None) -> None:
        """`opened`: of the same segments, whose columns are shared. Raises `StoreError` where columns are damaged."""
        self._segments = segments
        if opened is None:
            self._columns = [Columns.open(segment.part.segment) for segment in segments.segments]
        else:
            self._columns = opened._columns
        self.schema: Schema = dict(segments.generation.manifest.columns)

    def parse(self, filter: object) -> Filter:
        """A filter, checked against the index's columns. Raises `UsageError`."""
        return parse_filter(filter, self.schema)

    def check_fields(self, fields: Sequence[str]) -> list[str]:
        """The names of columns that are asked for; `*` stands for all. Raises `UsageError` for unknown ones."""
        unknown = [name for name in fields if name not in self.schema and name != "*"]
        if unknown:
            similar = difflib.get_close_matches(unknown[0], self.schema, n=1)
            meant = f" (did you mean {similar[0]!r}?)" if similar else ""
            raise UsageError(f"fields: no field {unknown[0]!r}{meant}; the index has: {described(self.schema)}")
        return list(self.schema) if "*" in fields else list(dict.fromkeys(fields))

    def matching(self, filter: Filter) -> NDArray[np.int64]:
        """The ordinals (m,) of the stored passages that match, rising; those with tombstones included."""
        found = [self._matching(place, filter) for place in range(len(self._columns))]
        ordinals = np.concatenate(found)
        return ordinals if len(found) == 1 else np.unique(ordinals)

    def _matching(self, place: int, filter: Filter) -> NDArray[np.int64]:
        columns = self._columns[place]
        if columns is not None:
            return columns.ordinals[filter.mask(columns)]
        if not filter.matches_without_values():
            return np.empty(0, np.int64)
        store = self._segments.segments[place].store
        return np.fromiter((ordinal for ordinal, _ in store.ordinals()), np.int64, len(store))

    def matches(self, doc_ids: Sequence[str], filter: Filter) -> list[bool | None]:
        """Whether each passage matches; `None` for one that is not stored, or whose entry is damaged."""
        ordinals, places = self._places(doc_ids)
        matches = np.zeros(len(doc_ids), np.bool_)
        for place, columns in enumerate(self._columns):
            here = np.flatnonzero(places == place)
            if columns is None:
                matches[here] = filter.matches_without_values()
            elif len(here):
                matches[here] = filter.mask(columns, columns.rows_of(ordinals[here])[0])
        return [is_match if place >= 0 else None for is_match, place in zip(matches.tolist(), places, strict=True)]

    def values(self, doc_ids: Sequence[str], names: Sequence[str]) -> list[dict[str, Value]]:
        """What each passage has, of some columns; nothing for one that is not stored, or damaged."""
        ordinals, places = self._places(doc_ids)
        values: list[dict[str, Value]] = [{} for _ in doc_ids]
        for place, columns in enumerate(self._columns):
            here = np.flatnonzero(places == place).tolist()
            if columns is not None and here:
                found = columns.values(columns.rows_of(ordinals[here])[0].tolist(), names)
                for i, of_passage in zip(here, found, strict=True):
                    values[i] = {name: of_passage[name] for name in names if name in of_passage}
        return values

    def _places(self, doc_ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ordinal and segment (n,) of each passage; segment -1 where it is not stored, or damaged."""
        metas = self._segments.metas(doc_ids)
        ordinals = np.array([one.ordinal if isinstance(one, PassageMeta) else -1 for one in metas], np.int64)
        places = np.full(len(doc_ids), -1, np.int64)
        for place, (segment, columns) in enumerate(zip(self._segments.segments, self._columns, strict=True)):
            if columns is None:
                (receipt,) = segment.part.manifest.segments
                present = (ordinals >= receipt.first_ordinal) & (ordinals < receipt.next_ordinal)
            else:
                present = columns.rows_of(ordinals)[1]
            places[present & (places < 0)] = place
        return ordinals, places
