"""Several segments as one store."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.generations.fingerprint import Fingerprint
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import Counts, Manifest, SegmentReceipt
from kalm_cache.generations.publish import receipts
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.generations.tombstones import TOMBSTONES_FILE, Tombstones
from kalm_cache.storage.passage_store import PassageMeta
from tests.stores import Stored, damage_record, record, write_store

BASE = {"a": 0, "b": 1, "c": 2, "d": 3}
FIRST, SECOND = {"b": 10, "e": 11}, {"a": 20, "e": 21, "f": 22}
HIDDEN = [(1, b"b", False), (0, b"a", False), (11, b"e", False), (3, b"d", True)]
SHOWN = {"a": 20, "b": 10, "c": 2, "e": 21, "f": 22}


@pytest.fixture
def generation(tmp_path: Path) -> Generation:
    """A base and two deltas that replace "a", "b" and "e"; "d" is deleted."""
    segments = []
    for name, ordinals, first, end in (("00000", BASE, 0, 10), ("00002", FIRST, 10, 20), ("00003", SECOND, 20, 30)):
        stored = {
            doc_id: Stored(record(f"{doc_id}{ordinal}".encode()), PassageMeta(ordinal, bytes(16)), f"text {ordinal}")
            for doc_id, ordinal in ordinals.items()
        }
        write_store(tmp_path / "shards" / name, stored, end)
        segments.append(SegmentReceipt(name, Counts(len(ordinals), 0, 0, 0, 0), first, end))
    (tmp_path / TOMBSTONES_FILE).write_bytes(Tombstones.nothing().adding(HIDDEN).pack())
    fingerprint = Fingerprint("m", "t", 1024, 4, "float32", "fp16", "e", True, True)
    counts, files = Counts(len(SHOWN), 0, 0, 0, 0), receipts(tmp_path)
    manifest = Manifest("000003", "", "m", "e", "", "", 8, fingerprint, counts, files, None, segments, 30)
    return Generation(tmp_path, manifest)


def test_each_id_is_that_of_the_one_shard_that_shows_it(generation: Generation):
    ids = [*SHOWN, "d", "nope", ""]
    with SegmentSet(generation) as segments:
        metas = segments.metas(ids)
        assert [one.ordinal if isinstance(one, PassageMeta) else one for one in metas] == [
            *SHOWN.values(),
            *[None] * 3,
        ]
        assert segments.texts(ids) == [*(f"text {ordinal}" for ordinal in SHOWN.values()), *[None] * 3]
        with segments.snapshot() as snapshot:
            payloads = [None if one is None else bytes(one.payload) for one in snapshot.records(ids)]
        assert payloads == [*(f"{doc_id}{ordinal}".encode() for doc_id, ordinal in SHOWN.items()), *[None] * 3]


def test_keys_and_numbers_are_those_that_are_shown_in_order(generation: Generation):
    with SegmentSet(generation) as segments:
        assert list(segments.keys()) == [b"a", b"b", b"c", b"e", b"f"]
        assert list(segments.ordinals()) == [(2, "c"), (10, "b"), (20, "a"), (21, "e"), (22, "f")]
        assert (len(segments), segments.next_ordinal()) == (5, 30)


def test_numbers_lead_to_ids_by_the_range_that_they_are_in(generation: Generation):
    with SegmentSet(generation) as segments:
        assert segments.doc_ids([22, 2, 10, 20]) == ["f", "c", "b", "a"]
        assert [type(one) for one in segments.find_doc_ids([22, 5, 99, -1])] == [str, *[DamagedRecordError] * 3]
        with pytest.raises(DamagedRecordError, match="ordinal 5 is not there"):
            segments.doc_ids([5])


def test_damage_of_one_shard_hides_nothing_of_another(generation: Generation):
    damage_record(generation.folder / "shards" / "00000", "c")
    damage_record(generation.folder / "shards" / "00000", "a")  # which another segment shows
    with SegmentSet(generation) as segments, segments.snapshot() as snapshot:
        found = snapshot.records(["a", "c", "f"])
        assert [isinstance(one, DamagedRecordError) for one in found] == [False, True, False]


def test_a_shard_that_cannot_be_opened_is_an_error_and_leaves_nothing_open(generation: Generation):
    path = generation.folder / "shards" / "00003" / "store.json"
    content = path.read_bytes()
    path.write_bytes(b"{}")
    with pytest.raises(StoreError):
        SegmentSet(generation)
    path.write_bytes(content)
    with SegmentSet(generation) as segments:
        assert len(segments) == 5
    segments.close()  # twice does nothing
