"""What a generation hides, against its shards: each passage is shown once at most, and as many as its manifest says."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

import numpy as np

from indexer.build.intake import batched
from indexer.integrity.damage import Damage
from kalm_cache.errors import DamagedRecordError, KalmCacheError
from kalm_cache.generations.generation import MANIFEST, NO_COUNTS, Counts, Generation
from kalm_cache.generations.segments import ShardSet, ShownShard
from kalm_cache.generations.tombstones import HIDDEN_FILE
from kalm_cache.storage.passage_store import Identity, doc_id_of
from kalm_cache.storage.record import Record

SCAN = 2048


def check_hidden(generation: Generation, checked: Counter[str], *, is_whole: bool) -> Iterator[Damage]:
    """`is_whole`: nothing else was found damaged, so that shards can be read and counts be compared to the last one."""
    try:
        hidden = generation.hidden()
    except KalmCacheError as exc:
        yield Damage(HIDDEN_FILE, None, str(exc))
        return
    if len(hidden):
        checked["hidden"] += len(hidden)
    if bool((np.diff(hidden.numbers) <= 0).any()):
        yield Damage(HIDDEN_FILE, None, "its numbers do not rise")
    if not is_whole:
        return
    counts = NO_COUNTS
    with ShardSet(generation) as shards:
        for shard in shards.shards:
            counts += shard.part.manifest.counts
            for problem, gone in _check_shard(shard):
                counts -= gone
                if problem is not None:
                    yield Damage(HIDDEN_FILE, None, problem)
        if sum(len(shard.hidden_numbers) for shard in shards.shards) != len(hidden):
            yield Damage(HIDDEN_FILE, None, "it hides numbers that no shard has")
        yield from _shown_twice(shards)
    said = generation.manifest.counts
    if counts.passages != said.passages or counts != said:
        yield Damage(MANIFEST, None, f"what is shown adds up to {counts}, it says {said}")


def _check_shard(shard: ShownShard) -> Iterator[tuple[str | None, Counts]]:
    """For each hidden passage of a shard: what is wrong, if anything, and what it counts."""
    own = shard.part.hidden().between(*_range(shard))
    for pairs in batched(zip(own.numbers.tolist(), own.keys, strict=True), SCAN):
        doc_ids = [doc_id_of(key) for _, key in pairs]
        with shard.store.snapshot() as snapshot:
            for (number, _), doc_id, identity, record in zip(
                pairs, doc_ids, shard.store.identities(doc_ids), snapshot.records(doc_ids), strict=True
            ):
                yield _problem(number, doc_id, identity), _counts(record)


def _range(shard: ShownShard) -> tuple[int, int]:
    (receipt,) = shard.part.manifest.shards
    return receipt.first_number, receipt.next_number


def _problem(number: int, doc_id: str, identity: Identity | DamagedRecordError | None) -> str | None:
    if isinstance(identity, Identity) and identity.number == number:
        return None
    return f"it hides number {number} as {doc_id!r}, and the shard does not have that"


def _counts(record: Record | DamagedRecordError | None) -> Counts:
    if not isinstance(record, Record):
        return Counts(1, 0, 0, 0, 0)
    return Counts(1, record.tokens, record.rows, int(record.truncated), len(record.payload))


def _shown_twice(shards: ShardSet) -> Iterator[Damage]:
    if len(shards.shards) < 2:
        return
    last = b""
    for key in heapq.merge(*(shard.keys() for shard in shards.shards)):
        if key == last:
            yield Damage(HIDDEN_FILE, doc_id_of(key), "two shards show it")
        last = key
