"""Several sealed shards as one store: what is hidden in them is in no answer. Knows bytes, not tensors.

A passage is shown by at most one shard, so that the order in which shards are asked decides nothing but speed: ids are
looked up in the base first, which holds most of them, and numbers by the ranges in the manifest.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import DamagedRecordError
from kalm_cache.generations.generation import Generation
from kalm_cache.storage.passage_store import Identity, PassageStore, key_of
from kalm_cache.storage.record import Record

if TYPE_CHECKING:
    from kalm_cache.scoring.state_reader import Records

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ShownShard:
    """One shard of a generation, and what of it is hidden: keys, and their numbers (m,) int64, rising."""

    part: Generation
    store: PassageStore
    hidden: frozenset[bytes]
    hidden_numbers: NDArray[np.int64]

    def keys(self) -> Iterator[bytes]:
        """The key of every passage that is shown, in order. Raises `DamagedRecordError`."""
        return (key for key in self.store.keys() if key not in self.hidden)  # noqa: SIM118 (not a dict)

    def numbers(self) -> Iterator[tuple[int, str]]:
        """(number, doc id) of every passage that is shown, by rising number. Raises `DamagedRecordError`."""
        gone = frozenset(self.hidden_numbers.tolist())
        return ((number, doc_id) for number, doc_id in self.store.numbers() if number not in gone)


class ShardSet:
    """The shards of one generation, read-only; a context manager. Offers what a `PassageStore` does."""

    def __init__(self, generation: Generation) -> None:
        """Open every shard. Raises `StoreError` when a file is missing, of another format, or damaged."""
        hidden = generation.hidden()
        self.generation = generation
        self.shards: list[ShownShard] = []
        self._first_numbers = [shard.first_number for shard in generation.manifest.shards]
        self._in_order = sorted(range(len(self._first_numbers)), key=self._first_numbers.__getitem__)
        self._first_numbers.sort()
        with ExitStack() as stack:
            for part in generation.parts():
                (shard,) = part.manifest.shards
                own = hidden.between(shard.first_number, shard.next_number)
                store = stack.enter_context(PassageStore(part.shard))
                self.shards.append(ShownShard(part, store, frozenset(own.keys), own.numbers))
            self._open = stack.pop_all()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the files; the store is unusable after it. Closing twice does nothing."""
        self._open.close()

    def __len__(self) -> int:
        return sum(len(shard.store) - len(shard.hidden) for shard in self.shards)

    def next_number(self) -> int:
        """The number that the next new passage gets, by this generation."""
        return self.generation.manifest.next_number

    @contextmanager
    def snapshot(self) -> Iterator[Records]:
        """Records in place: their payloads are views of maps, to be used before the snapshot ends."""
        with ExitStack() as stack:
            yield _Snapshot(self, [stack.enter_context(shard.store.snapshot()) for shard in self.shards])

    def identities(self, doc_ids: Sequence[str]) -> list[Identity | DamagedRecordError | None]:
        """Number and content hash of each id; `None` where no such passage is shown."""
        return self.ask(doc_ids, lambda shard, some: self.shards[shard].store.identities(some))

    def texts(self, doc_ids: Sequence[str]) -> list[str | None]:
        """The text of each id, `None` where none is kept. Raises `DamagedRecordError`."""
        return [_sound(text) for text in self.find_texts(doc_ids)]

    def find_texts(self, doc_ids: Sequence[str]) -> list[str | DamagedRecordError | None]:
        """As `texts`, with the error in the place of a damaged one."""
        return self.ask(doc_ids, lambda shard, some: self.shards[shard].store.find_texts(some))

    def doc_ids(self, numbers: Iterable[int]) -> list[str]:
        """The id behind each first-stage number. Raises `DamagedRecordError`, also when one is not there."""
        return [_sound(doc_id) for doc_id in self.find_doc_ids(numbers)]

    def find_doc_ids(self, numbers: Iterable[int]) -> list[str | DamagedRecordError]:
        """As `doc_ids`, with the error in the place of a damaged or missing one."""
        wanted = list(numbers)
        homes = [self._in_order[max(bisect_right(self._first_numbers, number) - 1, 0)] for number in wanted]
        found: list[str | DamagedRecordError] = [""] * len(wanted)
        for home in set(homes):
            here = [i for i, one in enumerate(homes) if one == home]
            names = self.shards[home].store.find_doc_ids([wanted[i] for i in here])
            for i, name in zip(here, names, strict=True):
                found[i] = name
        return found

    def keys(self) -> Iterator[bytes]:
        """The key of every passage that is shown, in order. Raises `DamagedRecordError`."""
        return heapq.merge(*(shard.keys() for shard in self.shards))

    def numbers(self) -> Iterator[tuple[int, str]]:
        """(number, doc id) of every passage that is shown, by rising number. Raises `DamagedRecordError`."""
        return heapq.merge(*(shard.numbers() for shard in self.shards))

    def ask(
        self, doc_ids: Sequence[str], find: Callable[[int, list[str]], Sequence[_T | DamagedRecordError | None]]
    ) -> list[_T | DamagedRecordError | None]:
        """What `find` has of each id in the one shard that shows it. Damage counts where no other shard has the id."""
        found: list[_T | DamagedRecordError | None] = [None] * len(doc_ids)
        rest = list(range(len(doc_ids)))
        for place, shard in enumerate(self.shards):
            here = [i for i in rest if key_of(doc_ids[i]) not in shard.hidden] if shard.hidden else rest
            if not here:
                continue
            for i, one in zip(here, find(place, [doc_ids[i] for i in here]), strict=True):
                found[i] = found[i] if one is None else one
            rest = [i for i in rest if found[i] is None or isinstance(found[i], DamagedRecordError)]
        return found


class _Snapshot:
    def __init__(self, shards: ShardSet, snapshots: Sequence[Records]) -> None:
        self._shards, self._snapshots = shards, snapshots

    def records(self, doc_ids: Sequence[str]) -> list[Record | DamagedRecordError | None]:
        """See `Records.records`."""
        return self._shards.ask(doc_ids, lambda shard, some: self._snapshots[shard].records(some))


def _sound(found: _T | DamagedRecordError) -> _T:
    if isinstance(found, DamagedRecordError):
        raise found
    return found
