"""What verification says of generations with several segments, and of what these hide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.integrity.verify import verify_index
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import Counts, Manifest
from kalm_cache.generations.publish import receipts
from kalm_cache.generations.tombstones import Tombstones
from kalm_cache.settings import Settings
from tests.indexer.changes import add
from tests.indexes import TEXTS, build
from tests.stores import damage_record


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """A base of 12, of which "d1" is replaced and "d2" deleted, and a delta of 2."""
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    add(folder, settings, encoders, {"d1": "edited", "n": "a new one"})
    delete_passages(["d2"], folder)
    return folder


def seal(index: Path, change: Callable[[Manifest], Manifest] = lambda manifest: manifest) -> None:
    """Give every file the receipt of its present content."""
    live = open_current(index)
    manifest = change(replace(live.manifest, files=receipts(live.folder)))
    (live.folder / "manifest.json").write_bytes(manifest.to_json())


def hide(index: Path, tombstones: Tombstones) -> None:
    (open_current(index).folder / "hidden.bin").write_bytes(tombstones.pack())
    seal(index)


def problems(index: Path) -> list[tuple[str, str | None]]:
    return [(damage.file, damage.doc_id) for damage in verify_index(index).damaged]


def test_all_that_is_stored_is_checked_and_what_is_hidden_counted(clean: Path):
    report = verify_index(clean)
    assert report.damaged == []
    assert report.checked["records"] == report.checked["texts"] == 14
    assert report.checked["vectors"] == report.checked["bm25_documents"] == 14
    assert report.checked["tombstones"] == 2


def test_damage_is_named_with_its_shard(index: Path):
    delta = open_current(index).manifest.segments[1].name
    damage_record(open_current(index).folder / "shards" / delta, "n")
    assert set(problems(index)) == {(f"shards/{delta}/states.lmdb", None), (f"shards/{delta}/states.lmdb", "n")}


def test_a_passage_that_two_shards_show_is_named(index: Path):
    tombstones = open_current(index).tombstones()
    keep = [i for i, key in enumerate(tombstones.keys) if key != b"d1"]
    hide(index, Tombstones(tombstones.ordinals[keep], [tombstones.keys[i] for i in keep], tombstones.deleted[keep]))
    assert ("hidden.bin", "d1") in problems(index)


def test_what_is_hidden_must_be_there_under_that_name(index: Path):
    hide(index, open_current(index).tombstones().adding([(5, b"d4", True)]))
    assert any(
        "ordinal 5 as 'd4', and the segment does not have that" in one.problem for one in verify_index(index).damaged
    )


def test_numbers_that_no_shard_has_are_named(index: Path):
    hide(index, open_current(index).tombstones().adding([(999, b"d4", True)]))
    assert any("ordinals that no segment has" in damage.problem for damage in verify_index(index).damaged)


def test_counts_must_be_those_of_what_is_shown(index: Path):
    seal(index, lambda manifest: replace(manifest, counts=manifest.counts + Counts(0, 1, 0, 0, 0)))
    assert any("what is shown adds up to" in damage.problem for damage in verify_index(index).damaged)


def test_numbers_must_be_in_the_range_of_their_shard(index: Path):
    def narrow(manifest: Manifest) -> Manifest:
        base, delta = manifest.segments
        return replace(manifest, segments=[replace(base, next_ordinal=10), delta])

    seal(index, narrow)
    assert any("the ordinals of segment 00000 do not fit" in damage.problem for damage in verify_index(index).damaged)


def test_a_damaged_journal_is_named(index: Path):
    (index / "JOURNAL").write_bytes(b"{")
    assert problems(index) == [("JOURNAL", None)]
