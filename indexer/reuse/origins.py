"""Where a passage's states can be taken from instead of being encoded: sealed segments, read by id and in key order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError, StoreError, UsageError
from kalm_cache.first_stage import BM25Index
from kalm_cache.generations.sharding import Shard
from kalm_cache.metadata import Columns, Schema, Value
from kalm_cache.storage.block_file import BlockReader
from kalm_cache.storage.checksummed_block import Block, Entry
from kalm_cache.storage.passage_store import PassageMeta, PassageStore, key_of
from kalm_cache.storage.record import Record


class Vectors(Protocol):
    """Vectors of a first stage, by ordinal."""

    def __call__(self, ordinals: NDArray[np.int64]) -> NDArray[np.float32]:
        """Ordinals (n,) -> the very vectors (n, E) that the embedder made."""


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A sealed segment that passages are taken from, and what its first stage has of them.

    `vectors`: as they were made, `None` where none are at hand. `tombstones`: keys that do not count. `postings`: a
    BM25 index that documents can be taken from. `shard`: that it is of; `None` = any passage may be in it. `columns`:
    its metadata, if there is any, or why that cannot be read.
    """

    store: PassageStore
    vectors: Vectors | None
    tombstones: frozenset[bytes] = frozenset()
    postings: BM25Index | None = None
    shard: Shard | None = None
    columns: Columns | StoreError | None = None

    def may_have(self, shard: Shard | None) -> bool:
        """Whether a passage of a shard can be in it; `None` = of any."""
        return shard is None or self.shard is None or self.shard.overlaps(shard)

    def keys(self) -> Iterator[bytes]:
        """The key of every passage without a tombstone, in order."""
        return (key for key in self.store.keys() if key not in self.tombstones)  # noqa: SIM118 (not a dict)

    def has_all_postings(self) -> bool:
        """Whether every passage that is stored is in `postings`."""
        if self.postings is None:
            return False
        stored = np.fromiter((ordinal for ordinal, _ in self.store.ordinals()), np.int64, len(self.store))
        return bool(np.isin(stored, self.postings.ordinals).all())

    def metadata(
        self, metas: Sequence[PassageMeta | DamagedRecordError | None], schema: Schema
    ) -> list[dict[str, Value]]:
        """The values of some of its passages, of the columns of `schema`; none for what is damaged or not there.

        Raises:
            StoreError: the metadata is damaged.
            UsageError: a column is of another type here, so that what it holds cannot stay.
        """
        if isinstance(self.columns, StoreError):
            raise self.columns
        if self.columns is None:
            return [{} for _ in metas]
        for name, type in self.columns.schema.items():
            if schema.get(name, type) != type:
                raise UsageError(
                    f"metadata {name!r} becomes {schema[name]}, and passages that stay have {type}: give the whole "
                    "corpus and --delete-missing"
                )
        ordinals = np.array([one.ordinal if isinstance(one, PassageMeta) else -1 for one in metas], np.int64)
        rows, present = self.columns.rows_of(ordinals)
        values = self.columns.values(rows.tolist(), schema)
        return [found if is_there else {} for found, is_there in zip(values, present.tolist(), strict=True)]

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | None]:
        """Of each id; `None` where the segment has no such passage, or it is damaged, or has a tombstone."""
        with self.store.snapshot() as snapshot:
            valid = [isinstance(record, Record) for record in snapshot.records(doc_ids)]
        metas = self.store.metas(doc_ids)
        return [
            meta if is_valid and isinstance(meta, PassageMeta) and key_of(doc_id) not in self.tombstones else None
            for doc_id, meta, is_valid in zip(doc_ids, metas, valid, strict=True)
        ]


class RisingReader:
    """Entries of one database, asked for in rising order of keys."""

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._block: Block | None = None
        self._next, self._last = 0, b""

    def entry(self, key: bytes) -> tuple[bytes, Entry]:
        """The common bytes and the entry of a key. Raises `StoreError` when it is damaged or not there."""
        try:
            return self._entry(key)
        except DamagedRecordError as exc:
            raise StoreError(f"what was valid a moment ago is damaged now; run the job again: {exc}") from exc

    def _entry(self, key: bytes) -> tuple[bytes, Entry]:
        block, place = self._block, self._next
        if block is None or key > self._last:
            block = self._block = self._reader.block_of(key)
            if block is None:
                raise DamagedRecordError(f"{key!r} is not there")
            self._last, place = block.key(len(block) - 1), 0
        if place >= len(block) or block.key(place) != key:
            in_block = block.find(key)
            if in_block is None:
                raise DamagedRecordError(f"{key!r} is not there")
            place = in_block
        self._next = place + 1
        return block.common, block.valid_entry(place)
