"""Which shard a passage belongs to, by its id alone. Knows nothing of files.

An id falls into one of a fixed number of buckets, and neighbouring buckets make a shard. The number of buckets never
changes, so that a changed number of shards moves whole buckets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kalm_cache.errors import UsageError
from kalm_cache.foreign_files import STRICT, Positive

BUCKETS = 1 << 14


@dataclass(frozen=True, slots=True)
class Sharding:
    """`count` shards over `buckets` buckets."""

    count: Positive
    buckets: Positive = BUCKETS
    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        """Raises `UsageError` where some shards would have no bucket."""
        if not 1 <= self.count <= self.buckets:
            raise UsageError(f"the number of shards is {self.count}; it must be 1 to {self.buckets}")

    def bucket_of(self, key: bytes) -> int:
        """The bucket of an id, given as its UTF-8 bytes: the first 8 bytes of their BLAKE2b, big-endian, modulo."""
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") % self.buckets

    def shard_of(self, key: bytes) -> int:
        """The shard of an id."""
        return self.bucket_of(key) * self.count // self.buckets

    def shards(self) -> list[Shard]:
        """All of them, by number."""
        return [Shard(self, number) for number in range(self.count)]


@dataclass(frozen=True, slots=True)
class Shard:
    """One of them."""

    sharding: Sharding
    number: int

    def holds(self, key: bytes) -> bool:
        """Whether the passage of an id is in it."""
        return self.sharding.shard_of(key) == self.number

    def buckets(self) -> range:
        """Its buckets."""
        count, buckets = self.sharding.count, self.sharding.buckets
        return range(-(-self.number * buckets // count), -(-(self.number + 1) * buckets // count))

    def overlaps(self, other: Shard) -> bool:
        """Whether an id may be in both, which may be of different numbers of shards."""
        mine, theirs = self.buckets(), other.buckets()
        same_buckets = self.sharding.buckets == other.sharding.buckets
        return not same_buckets or (mine.start < theirs.stop and theirs.start < mine.stop)
