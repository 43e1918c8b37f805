"""Generations on disk: what a reader sees at every step of publishing, and what is never given twice."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.generations import publish as publishing
from kalm_cache.generations.build_folders import next_building_folder
from kalm_cache.generations.current import current_name, write_current
from kalm_cache.generations.generation import (
    open_and_share,
    open_current,
    require_valid,
    segment_folder,
)
from kalm_cache.generations.journal import Journal
from kalm_cache.generations.manifest import Counts, FileReceipt, SegmentReceipt
from kalm_cache.generations.publish import finish_publishing, make_live, name_for, publish, receipts
from kalm_cache.generations.tombstones import Tombstones
from kalm_cache.storage import durable
from tests.generations.builds import build, publish_next


def test_a_published_generation_is_the_live_one_with_its_manifest(tmp_path: Path):
    published = publish_next(tmp_path)
    assert open_current(tmp_path) == published
    assert current_name(tmp_path) == "000001"
    assert (published.segment / "passages.lmdb").read_text() == "data"
    assert published.manifest.files == {
        "shards/00000/passages.lmdb": FileReceipt(4, "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7")
    }


def test_readers_see_the_old_generation_until_publishing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish_next(tmp_path)
    seen = []

    def look(name: str):
        original = getattr(durable, name)

        def stepping(*arguments: Path) -> None:
            seen.append(open_current(tmp_path).manifest.generation)
            original(*arguments)
            seen.append(open_current(tmp_path).manifest.generation)

        return stepping

    for module in (durable, publishing):
        for name in ("rename_durably", "sync"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, look(name))
    publish_next(tmp_path, "newer")
    assert set(seen) == {"000001", "000002"}
    assert seen == sorted(seen)  # never back
    assert seen.count("000002") <= 4  # the last rename, and the fsync within it


@pytest.mark.parametrize("step", range(1, 5))
def test_a_publication_that_dies_between_two_renames_leaves_the_old_one_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    publish_next(tmp_path)
    steps = []

    def dying(source: Path, target: Path) -> None:
        steps.append(target.name)
        if len(steps) == step:
            raise KeyboardInterrupt
        source.replace(target)

    monkeypatch.setattr(durable, "rename_durably", dying)
    monkeypatch.setattr(publishing, "rename_durably", dying)
    with pytest.raises(KeyboardInterrupt):
        publish_next(tmp_path, "newer")
    monkeypatch.undo()
    assert steps == ["manifest.json", "JOURNAL", "000002", "CURRENT"][:step]
    assert open_current(tmp_path).manifest.generation == "000001"
    require_valid(open_current(tmp_path))
    assert finish_publishing(tmp_path) == ("000002" if step == 4 else None)
    assert open_current(tmp_path).manifest.generation == ("000002" if step == 4 else "000001")


def test_an_empty_folder_has_no_index_and_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(IndexNotFoundError, match=r"no published index here; run: kalm-cache index CORPUS --index"):
        open_current(tmp_path)
    with pytest.raises(IndexNotFoundError):
        open_current(tmp_path / "none")


@pytest.mark.parametrize("name", ["", "../elsewhere", "/etc", "..", "00000\u0661", "-1", "9" * 900])
def test_a_current_that_is_no_name_of_a_generation_is_refused(tmp_path: Path, name: str):
    publish_next(tmp_path)
    line = name.encode()
    (tmp_path / "CURRENT").write_bytes(line + f" crc32:{zlib.crc32(line):08x}\n".encode())
    for use in (open_current, open_and_share):
        with pytest.raises(StoreError, match=r"CURRENT: .* --to 000001 "):
            use(tmp_path)


@pytest.mark.parametrize("kind", ["large", "a pipe"])
def test_a_current_that_is_no_small_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str):
    publish_next(tmp_path)
    path = tmp_path / "CURRENT"
    path.unlink()
    {"large": lambda: path.write_bytes(bytes(2000)), "a pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(StoreError, match=r"CURRENT: it (has 2000 bytes|is no regular file)"):
        open_current(tmp_path)


def test_a_current_that_names_no_generation_is_not_found(tmp_path: Path):
    publish_next(tmp_path)
    write_current(tmp_path, "000009")
    with pytest.raises(IndexNotFoundError, match=r"CURRENT names a generation without a manifest\.json"):
        open_current(tmp_path)


def test_a_damaged_current_is_never_taken_for_another_generation(tmp_path: Path):
    first, second = publish_next(tmp_path), publish_next(tmp_path)
    line = (tmp_path / "CURRENT").read_bytes()
    (tmp_path / "CURRENT").write_bytes(line.replace(second.name.encode(), first.name.encode()))
    for use in (open_current, open_and_share):
        with pytest.raises(StoreError, match=r"CURRENT: checksum mismatch.* --to 000002 "):
            use(tmp_path)
    assert finish_publishing(tmp_path) is None
    make_live(tmp_path, second)
    assert open_current(tmp_path) == second


def test_a_missing_or_cut_file_is_found_by_its_size(tmp_path: Path):
    published = publish_next(tmp_path)
    require_valid(published)
    (published.segment / "passages.lmdb").write_text("dat")
    with pytest.raises(StoreError, match=r"passages\.lmdb has 3 bytes, its receipt says 4; run kalm-cache verify"):
        require_valid(published)
    (published.segment / "passages.lmdb").unlink()
    with pytest.raises(StoreError, match=r"passages\.lmdb is missing, its receipt says 4"):
        require_valid(published)


def test_a_new_build_is_one_above_the_highest_name_ever_used(tmp_path: Path):
    generations = tmp_path / "generations"
    assert next_building_folder(tmp_path) == generations / "000001.building"
    for name in ("000001", "000009", "000010.building", "000004.removing"):
        (generations / name).mkdir(parents=True)
    assert next_building_folder(tmp_path) == generations / "000011.building"
    (tmp_path / "JOURNAL").write_bytes(Journal(20, 7, None).to_json())
    assert next_building_folder(tmp_path) == generations / "000021.building"


def test_a_build_that_was_overtaken_gets_a_later_name(tmp_path: Path):
    first, _ = build(tmp_path)
    assert name_for(tmp_path, first) == "000001"
    publish(tmp_path, *build(tmp_path))
    assert open_current(tmp_path).name == "000002"
    assert name_for(tmp_path, first) == "000003"


def test_going_back_is_not_taken_for_half_a_publication(tmp_path: Path):
    first = publish_next(tmp_path)
    publish_next(tmp_path)
    make_live(tmp_path, first)
    assert open_current(tmp_path).name == "000001"
    assert finish_publishing(tmp_path) is None
    assert open_current(tmp_path).name == "000001"


def test_the_parts_of_a_generation_are_its_shards_with_their_own_counts(tmp_path: Path):
    building, manifest = build(tmp_path)
    more = SegmentReceipt("00007", Counts(9, 9, 9, 9, 9), 5, 14)
    published = publish(tmp_path, building, replace(manifest, segments=[*manifest.segments, more], next_ordinal=14))
    parts = list(open_current(tmp_path).parts())
    assert [(part.segment_name, part.manifest.counts.passages) for part in parts] == [("00000", 1), ("00007", 9)]
    assert [part.segment for part in parts] == [segment_folder(published.folder, name) for name in ("00000", "00007")]
    assert open_current(tmp_path).part("00007") == parts[1]


def test_a_hidden_list_that_is_missing_is_an_error_and_hides_nothing_silently(tmp_path: Path):
    building, manifest = build(tmp_path)
    (building / "hidden.bin").write_bytes(Tombstones.nothing().adding([(3, b"d3", True)]).pack())
    publish(tmp_path, building, replace(manifest, files=receipts(building)))
    assert open_current(tmp_path).tombstones().keys == [b"d3"]
    (open_current(tmp_path).folder / "hidden.bin").unlink()
    with pytest.raises(StoreError, match=r"hidden\.bin is missing or empty"):
        open_current(tmp_path).tombstones()


def test_receipts_name_every_file_but_the_manifest(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("manifest.json", "x", "a/y", "a/b/z"):
        (tmp_path / name).write_bytes(name.encode())
    found = receipts(tmp_path)
    assert sorted(found) == ["a/b/z", "a/y", "x"]
    assert found["a/y"].bytes == 3


def test_a_file_of_a_generation_that_is_a_link_to_elsewhere_is_refused(tmp_path: Path):
    folder = publish_next(tmp_path).folder
    path = segment_folder(folder) / "passages.lmdb"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"passages\.lmdb is a link that leads out of the index"):
        open_current(tmp_path)
