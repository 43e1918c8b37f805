"""Several sealed segments as one store: what has a tombstone is in no answer. Knows bytes, not tensors.

A passage is shown by at most one segment, so that the order in which segments are asked decides nothing but speed: ids
are looked up in the base first, which holds most of them, there in their shard alone, and ordinals by the ranges in the
manifest. The shards of a base have one range, and are asked one after the other.

Some of the shards alone can be opened: of the segments that were added since, the passages of other shards then have
tombstones, too.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError
from kalm_cache.generations.generation import Generation
from kalm_cache.storage.passage_store import PassageMeta, PassageStore, key_of, require_undamaged
from kalm_cache.storage.record import Record

if TYPE_CHECKING:
    from kalm_cache.storage.record import Records

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LiveSegment:
    """One segment of a generation, and its tombstones: keys, and their ordinals (m,) int64, rising."""

    part: Generation
    store: PassageStore
    tombstones: frozenset[bytes]
    tombstone_ordinals: NDArray[np.int64]

    @property
    def shard(self) -> int | None:
        """Its number, where it is a shard of the base."""
        shard = self.part.shard
        return None if shard is None else shard.number

    def of_shards(self, shards: Collection[int]) -> LiveSegment:
        """The segment with the passages of some shards alone. Raises `DamagedRecordError`."""
        sharding = self.part.manifest.sharding
        if sharding is None or self.shard is not None:
            return self
        others = [
            (ordinal, key_of(doc_id))
            for ordinal, doc_id in self.store.ordinals()
            if sharding.shard_of(key_of(doc_id)) not in shards
        ]
        ordinals = np.union1d(self.tombstone_ordinals, np.array([ordinal for ordinal, _ in others], np.int64))
        return replace(self, tombstones=self.tombstones | {key for _, key in others}, tombstone_ordinals=ordinals)

    def keys(self) -> Iterator[bytes]:
        """The key of every passage that is shown, in order. Raises `DamagedRecordError`."""
        return (key for key in self.store.keys() if key not in self.tombstones)  # noqa: SIM118 (not a dict)

    def ordinals(self) -> Iterator[tuple[int, str]]:
        """(ordinal, doc id) of every passage that is shown, by rising ordinal. Raises `DamagedRecordError`."""
        gone = frozenset(self.tombstone_ordinals.tolist())
        return ((ordinal, doc_id) for ordinal, doc_id in self.store.ordinals() if ordinal not in gone)


class SegmentSet:
    """The segments of one generation, read-only; a context manager. Offers what a `PassageStore` does."""

    def __init__(self, generation: Generation, shards: Collection[int] | None = None) -> None:
        """Open every segment, or the passages of some shards alone.

        Raises:
            StoreError: a file is missing, of another format, or damaged.
        """
        tombstones = generation.tombstones()
        self.generation = generation
        self.segments: list[LiveSegment] = []
        names = generation.segments_of(shards)
        parts = [part for part in generation.parts() if part.segment_name in names]
        by_range: dict[int, list[int]] = {}
        for place, part in enumerate(parts):
            by_range.setdefault(part.manifest.segments[0].first_ordinal, []).append(place)
        self._first_ordinals = sorted(by_range)
        self._by_range = [by_range[first] for first in self._first_ordinals]  # places of segments
        with ExitStack() as stack:
            for part in parts:
                gone = generation.tombstones_of(part.manifest.segments[0], tombstones)
                store = stack.enter_context(PassageStore(part.segment))
                segment = LiveSegment(part, store, frozenset(gone.keys), gone.ordinals)
                self.segments.append(segment if shards is None else segment.of_shards(shards))
            self._open = stack.pop_all()

    def __enter__(self) -> SegmentSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the files; the store is unusable after it. Closing twice does nothing."""
        self._open.close()

    def __len__(self) -> int:
        return sum(len(segment.store) - len(segment.tombstones) for segment in self.segments)

    def next_ordinal(self) -> int:
        """The ordinal that the next new passage gets, by this generation."""
        return self.generation.manifest.next_ordinal

    @contextmanager
    def snapshot(self) -> Iterator[Records]:
        """Records in place: their payloads are views of maps, to be used before the snapshot ends."""
        with ExitStack() as stack:
            yield _Snapshot(self, [stack.enter_context(segment.store.snapshot()) for segment in self.segments])

    def metas(self, doc_ids: Sequence[str]) -> list[PassageMeta | DamagedRecordError | None]:
        """Ordinal and content hash of each id; `None` where no such passage is shown."""
        return self.ask(doc_ids, lambda segment, some: self.segments[segment].store.metas(some))

    def find_contents(self, content_hashes: Sequence[bytes]) -> list[str | None]:
        """The id of a passage that is shown and has each content (16 B, `Passage.content_hash`); `None` = none has."""
        found: dict[bytes, str] = {}
        for segment in self.segments:
            left = [one for one in content_hashes if one not in found]
            for content_hash, ordinals in zip(left, segment.store.find_contents(left), strict=True):
                for doc_id in segment.store.find_doc_ids(ordinals):
                    if isinstance(doc_id, str) and self._has_content(doc_id, content_hash):
                        found.setdefault(content_hash, doc_id)
        return [found.get(one) for one in content_hashes]

    def _has_content(self, doc_id: str, content_hash: bytes) -> bool:
        """Whether the passage is shown, and is the one that was looked for: a damaged lookup may say otherwise."""
        (meta,) = self.metas([doc_id])
        return isinstance(meta, PassageMeta) and meta.content_hash == content_hash

    def texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each id, `None` where none is kept. Raises `DamagedRecordError`."""
        return [require_undamaged(text) for text in self.find_texts(doc_ids)]

    def find_texts(self, doc_ids: Sequence[str]) -> list[str | DamagedRecordError | None]:
        """As `texts`, with the error in the place of a damaged one."""
        return self.ask(doc_ids, lambda segment, some: self.segments[segment].store.find_texts(some))

    def doc_ids(self, ordinals: Iterable[int]) -> list[str]:
        """The id behind each first-stage ordinal. Raises `DamagedRecordError`, also when one is not there."""
        return [require_undamaged(doc_id) for doc_id in self.find_doc_ids(ordinals)]

    def find_doc_ids(self, ordinals: Iterable[int]) -> list[str | DamagedRecordError]:
        """As `doc_ids`, with the error in the place of a damaged or missing one."""
        wanted = list(ordinals)
        homes = [max(bisect_right(self._first_ordinals, ordinal) - 1, 0) for ordinal in wanted]
        doc_ids: list[str | DamagedRecordError] = [""] * len(wanted)
        for home in set(homes):
            rows = [i for i, its_home in enumerate(homes) if its_home == home]
            for i, doc_id in zip(rows, self._find_in(self._by_range[home], [wanted[i] for i in rows]), strict=True):
                doc_ids[i] = doc_id
        return doc_ids

    def _find_in(self, places: Sequence[int], ordinals: list[int]) -> list[str | DamagedRecordError]:
        """The ids behind ordinals of one range, which one of these segments has each."""
        first, *others = places
        found = self.segments[first].store.find_doc_ids(ordinals)
        for place in others:
            rows = [i for i, doc_id in enumerate(found) if not isinstance(doc_id, str)]
            there = self.segments[place].store.find_doc_ids([ordinals[i] for i in rows]) if rows else []
            for i, doc_id in zip(rows, there, strict=True):
                found[i] = _nearer(found[i], doc_id)
        return found

    def keys(self) -> Iterator[bytes]:
        """The key of every passage that is shown, in order. Raises `DamagedRecordError`."""
        return heapq.merge(*(segment.keys() for segment in self.segments))

    def ordinals(self) -> Iterator[tuple[int, str]]:
        """(ordinal, doc id) of every passage that is shown, by rising ordinal. Raises `DamagedRecordError`."""
        return heapq.merge(*(segment.ordinals() for segment in self.segments))

    def sample(self, count: int) -> list[str]:
        """The ids of at most `count` passages that are shown, spread over the ordinals: the same ones at every call.

        Of 4 · `count` ordinals at equal distances, those whose passages are shown, and of these as many at equal
        distances. Where there are none of these, the first ones that are shown. Damaged ids are left out.

        Raises:
            DamagedRecordError: it was necessary to look for passages one by one, and their list is damaged.
        """
        probes = dict.fromkeys(i * self.next_ordinal() // (4 * count) for i in range(4 * count))
        found = [doc_id for doc_id in self.find_doc_ids(probes) if isinstance(doc_id, str)]
        distinct = list(dict.fromkeys(found))
        shown = [id_ for id_, meta in zip(distinct, self.metas(distinct), strict=True) if isinstance(meta, PassageMeta)]
        if not shown:
            return [doc_id for _, doc_id in islice(self.ordinals(), count)]
        return [shown[i * len(shown) // count] for i in range(count)] if len(shown) > count else shown

    def ask(
        self, doc_ids: Sequence[str], find: Callable[[int, list[str]], Sequence[_T | DamagedRecordError | None]]
    ) -> list[_T | DamagedRecordError | None]:
        """What `find` has of each id in the one segment that shows it. Damage counts where no other has the id."""
        answers: list[_T | DamagedRecordError | None] = [None] * len(doc_ids)
        rest = list(range(len(doc_ids)))
        sharding = self.generation.manifest.sharding
        homes = [] if sharding is None else [sharding.shard_of(key_of(doc_id)) for doc_id in doc_ids]
        for place, segment in enumerate(self.segments):
            here = rest if segment.shard is None else [i for i in rest if homes[i] == segment.shard]
            if segment.tombstones:
                here = [i for i in here if key_of(doc_ids[i]) not in segment.tombstones]
            if not here:
                continue
            for i, answer in zip(here, find(place, [doc_ids[i] for i in here]), strict=True):
                answers[i] = answers[i] if answer is None else answer
            rest = [i for i in rest if answers[i] is None or isinstance(answers[i], DamagedRecordError)]
        return answers


def _nearer(one: str | DamagedRecordError, other: str | DamagedRecordError) -> str | DamagedRecordError:
    """The id, or what says more: that it is damaged in one segment, rather than that another does not have it."""
    return other if isinstance(other, str) or "is not there" in str(one) else one


class _Snapshot:
    def __init__(self, segments: SegmentSet, snapshots: Sequence[Records]) -> None:
        self._segments, self._snapshots = segments, snapshots

    def records(self, doc_ids: Sequence[str]) -> list[Record | DamagedRecordError | None]:
        """See `Records.records`."""
        return self._segments.ask(doc_ids, lambda segment, some: self._snapshots[segment].records(some))
