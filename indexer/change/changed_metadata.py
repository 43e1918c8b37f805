"""Passages of which only the metadata changes: their segments get other columns, and nothing is encoded or copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kalm_cache.errors import StoreError
from kalm_cache.generations.generation import Generation, segment_folder
from kalm_cache.metadata import Columns, Schema, Value
from kalm_cache.metadata.column_writer import rewrite_columns
from kalm_cache.storage.passage_store import PassageStore, key_of, require_undamaged


@dataclass(slots=True)
class ChangedMetadata:
    """`schema`: the columns of the index, with those that came with the change. `values`: new ones by doc id."""

    schema: Schema
    values: dict[str, Mapping[str, Value]] = field(default_factory=dict)

    def write(self, building: Path, parent: Generation) -> Iterator[str]:
        """Write the columns of every segment that shows some of the passages; yields the segments' names.

        `building` has the parent's files. Raises `StoreError` where a segment that has some cannot be read.
        """
        if not self.values:
            return
        tombstones = parent.tombstones()
        for part in parent.parts():
            (receipt,) = part.manifest.segments
            gone = frozenset(parent.tombstones_of(receipt, tombstones).keys)
            wanted = [doc_id for doc_id in self.values if key_of(doc_id) not in gone and _may_hold(part, doc_id)]
            with PassageStore(part.segment) as store:
                metas = zip(wanted, store.metas(wanted), strict=True)
                found = {doc_id: require_undamaged(meta) for doc_id, meta in metas}
            changed = {meta.ordinal: self.values[doc_id] for doc_id, meta in found.items() if meta is not None}
            if changed:
                columns = Columns.open(part.segment)
                if columns is None:
                    raise StoreError(f"{part.segment}: has no metadata; run kalm-cache reindex CORPUS")
                rewrite_columns(segment_folder(building, part.segment_name), columns, self.schema, changed)
                yield part.segment_name


def _may_hold(part: Generation, doc_id: str) -> bool:
    return part.shard is None or part.shard.holds(key_of(doc_id))
