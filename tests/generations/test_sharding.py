"""Which shard an id belongs to: always the same, evenly, and whole buckets at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.generations.manifest import NO_COUNTS, Counts, Manifest, SegmentReceipt, read_manifest
from kalm_cache.generations.sharding import Shard, Sharding
from tests.generations.test_generation import build

KEYS = [f"doc {i}".encode() for i in range(4000)]


def test_a_bucket_is_the_first_eight_bytes_of_the_digest_of_an_id():
    digest = hashlib.blake2b("café".encode(), digest_size=8).hexdigest()
    assert Sharding(4).bucket_of("café".encode()) == int(digest, 16) % 16384
    # written down: stored indexes depend on it
    assert [Sharding(8).shard_of(key) for key in (b"d1", b"d2", b"d3", "café".encode())] == [6, 7, 4, 2]


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_shards_are_about_equal_and_each_id_is_in_one(shards: int):
    found = Counter(Sharding(shards).shard_of(key) for key in KEYS)
    assert sorted(found) == list(range(shards))
    assert max(found.values()) < 1.25 * len(KEYS) / shards
    assert all([shard.holds(key) for shard in Sharding(shards).shards()].count(True) == 1 for key in KEYS[:50])


def test_twice_as_many_shards_split_each_in_two():
    assert {Sharding(8).shard_of(key) // 2 - Sharding(4).shard_of(key) for key in KEYS} == {0}
    assert Shard(Sharding(4), 2).holds(b"d3") == (Sharding(8).shard_of(b"d3") in (4, 5))


def test_the_buckets_of_a_shard_are_those_whose_ids_it_holds_and_shards_overlap_where_they_share_one():
    small = Sharding(3, 16)  # 16 buckets: 0-5, 6-10, 11-15
    assert [list(shard.buckets())[:: len(shard.buckets()) - 1] for shard in small.shards()] == [
        [0, 5],
        [6, 10],
        [11, 15],
    ]
    assert all(small.shard_of(key) == 1 for key in KEYS if small.bucket_of(key) in small.shards()[1].buckets())
    assert [[mine.overlaps(other) for other in Sharding(2, 16).shards()] for mine in small.shards()] == [
        *([True, False], [True, True], [False, True])
    ]
    assert small.shards()[0].overlaps(Shard(Sharding(2, 64), 1))  # other buckets: who knows


@pytest.mark.parametrize("count", [0, -1, 16385])
def test_a_number_of_shards_that_leaves_one_without_a_bucket_is_refused(count: int):
    with pytest.raises(UsageError, match=f"the number of shards is {count}; it must be 1 to 16384"):
        Sharding(count)


TWO = Sharding(2)


def written(folder: Path, segments: list[SegmentReceipt], sharding: Sharding | None) -> Manifest:
    """A manifest of these segments, in `folder`."""
    _, manifest = build(folder / "index")
    manifest = replace(manifest, counts=NO_COUNTS, segments=segments, next_ordinal=20, sharding=sharding)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return manifest


def shard(number: int | None, name: str, first: int = 0, following: int = 10, passages: int = 4) -> SegmentReceipt:
    return SegmentReceipt(name, Counts(passages, 0, 0, 0, 0), first, following, number)


def test_the_shards_of_a_base_have_one_range_and_what_is_added_another(tmp_path: Path):
    manifest = written(tmp_path, [shard(0, "00000"), shard(1, "00001"), shard(None, "000002", 10, 12, 2)], TWO)
    assert read_manifest(tmp_path) == manifest
    assert ([one.name for one in manifest.base], [one.name for one in manifest.tail]) == (
        ["00000", "00001"],
        ["000002"],
    )


@pytest.mark.parametrize(
    ("sharding", "segments", "problem"),
    [
        (TWO, [shard(0, "0")], "their shards are not those of sharding"),
        (TWO, [shard(0, "0"), shard(2, "1")], "their shards are not those of sharding"),
        (TWO, [shard(1, "1"), shard(0, "0")], "their shards are not those of sharding"),
        (None, [shard(0, "0"), shard(1, "1")], "their shards are not those of sharding"),
        (TWO, [shard(None, "2", 10, 12, 2), shard(0, "0"), shard(1, "1")], "the shards do not come first"),
        (TWO, [shard(0, "0"), shard(1, "1", 0, 11)], "have not one range"),
        (TWO, [shard(0, "0", passages=6), shard(1, "1", passages=5)], "do not fit the others or its passages"),
        (TWO, [shard(0, "0"), shard(1, "1"), shard(None, "2", 9, 12, 2)], "do not fit the others"),
    ],
)
def test_a_manifest_whose_shards_do_not_go_together_is_refused(
    tmp_path: Path, sharding: Sharding | None, segments: list[SegmentReceipt], problem: str
):
    written(tmp_path, segments, sharding)
    with pytest.raises(StoreError, match=problem):
        read_manifest(tmp_path)
