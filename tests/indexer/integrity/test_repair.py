"""Repair: what is whole stays as it is, what has a text is encoded again, and the rest is listed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from indexer.integrity.repair import repair_index
from indexer.integrity.verify import verify_index
from kalm_cache import PassageIndex
from kalm_cache.errors import StoreError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import add, found, numbers_of, payloads_of, reindex, scores_of, texts_of, valid
from tests.indexes import TEXTS, build, settings_for, shard_of
from tests.stores import damage_record, damage_text

MANY = TEXTS | {f"p{i}": f"the passage {i} of the ferry and the bees, {i} times" for i in range(100)}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "index"
    build(folder, settings, MANY, encoders=encoders)
    return folder


def test_damaged_records_are_encoded_again_from_their_texts_and_the_rest_is_copied(index: Path, settings: Settings):
    before, ordinals = payloads_of(index), numbers_of(index)
    for doc_id in ("d3", "p50"):
        damage_record(shard_of(index), doc_id)
    report = repair_index(index, settings)
    assert (report.generation, report.damaged_generation, report.passages) == ("000002", "000001", len(MANY))
    assert (report.copied, report.encoded, report.quarantined, report.nameless) == (len(MANY) - 2, 2, [], 0)
    after = payloads_of(index)
    assert {one: after[one] for one in before if one not in ("d3", "p50")} == {
        one: before[one] for one in before if one not in ("d3", "p50")
    }
    assert texts_of(index) == MANY
    now = numbers_of(index)
    assert {one for one in MANY if now[one] != ordinals[one]} == {"d3", "p50"}
    with PassageIndex.open(index, device="cpu") as opened:
        assert opened.rerank("ferry", list(MANY)).damaged == []
    assert valid(index)


def test_what_has_lost_its_text_is_set_aside_listed_and_comes_back_with_the_corpus(
    index: Path, settings: Settings, encoders: Encoders
):
    damage_text(shard_of(index), "d3")
    damage_record(shard_of(index), "d4")
    damage_text(shard_of(index), "d4")
    report = repair_index(index, settings)
    assert (sorted(report.quarantined), report.nameless, report.encoded) == (["d3", "d4"], 0, 0)
    assert texts_of(index) == {one: text for one, text in MANY.items() if one not in ("d3", "d4")}
    listed = json.loads((open_current(index).folder / "quarantine.json").read_text())
    assert listed == {"generation": "000001", "passages": ["d3", "d4"], "nameless": 0}
    assert valid(index)
    assert roll_back(index).generation == "000001"  # nothing was removed
    roll_back(index, "2")
    assert reindex(index, settings, encoders, MANY).encoded == 2
    assert texts_of(index) == MANY


@pytest.mark.parametrize("name", ["states.lmdb", "passages.lmdb"])
@pytest.mark.parametrize("damage", ["pages", "cut", "noise", "empty", "gone"])
def test_whatever_happens_to_a_file_all_that_is_whole_in_it_is_saved(
    index: Path, settings: Settings, name: str, damage: str
):
    before, path = payloads_of(index), shard_of(index) / name
    content = bytearray(path.read_bytes())
    if damage == "pages":
        content[:8192] = np.random.default_rng(0).bytes(8192)  # both meta pages
    elif damage == "cut":
        del content[len(content) * 2 // 3 :]
    elif damage == "noise":
        for at in np.random.default_rng(1).integers(0, len(content), 3).tolist():
            content[at] ^= 0xFF
    elif damage == "empty":
        content.clear()
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    assert not verify_index(index).ok
    report = repair_index(index, settings)
    after = payloads_of(index)
    assert {one: after[one] for one in after} == {one: before[one] for one in after}
    assert len(after) + len(report.quarantined) + report.nameless == len(MANY)
    if name == "states.lmdb":
        assert len(after) == len(MANY)  # every text is at hand
    elif damage in ("pages", "noise"):
        assert len(after) > len(MANY) / 2
    assert valid(index)


def test_a_damaged_first_stage_is_built_anew_from_what_is_stored(index: Path, settings: Settings):
    expected = found(index, "ferry bees")
    for name in ("dense.faiss", "bm25/data.npy"):
        path = shard_of(index) / "first_stage" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    report = repair_index(index, settings)
    assert (report.copied, report.encoded) == (len(MANY), 0)
    assert found(index, "ferry bees") == expected
    assert valid(index)


def test_deltas_are_repaired_and_what_is_hidden_stays_hidden(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, {"d1": "edited", "n": "a new one"})
    delete_passages(["d2"], index)
    damage_record(shard_of(index, "000003"), "d5")
    damage_record(open_current(index).folder / "shards" / "00002", "n")
    expected = texts_of(index)
    report = repair_index(index, settings)
    assert (report.encoded, report.quarantined) == (2, [])
    assert texts_of(index) == expected
    assert len(open_current(index).manifest.segments) == 1
    assert valid(index)


def test_the_damaged_generation_goes_with_gc_and_not_before(index: Path, settings: Settings):
    damage_record(shard_of(index), "d3")
    repair_index(index, settings)
    assert (index / "generations" / "000001").exists()
    collect_garbage(index, keep=0)
    assert [path.name for path in (index / "generations").iterdir()] == ["000002"]


def test_what_is_hidden_cannot_be_guessed_so_that_such_damage_is_refused(index: Path, settings: Settings):
    delete_passages(["d2"], index)
    path = open_current(index).folder / "hidden.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match=r"hidden\.bin: checksum mismatch"):
        repair_index(index, settings)
    assert {one.file for one in verify_index(index).damaged} == {"hidden.bin"}


def test_without_texts_states_are_saved_and_the_others_listed(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder, store_text=False, bm25=False)
    build(tmp_path / "index", settings, TEXTS)
    damage_record(shard_of(tmp_path / "index"), "d3")
    report = repair_index(tmp_path / "index", settings)
    assert (report.copied, report.encoded, report.quarantined) == (11, 0, ["d3"])
    assert valid(tmp_path / "index")


def test_without_texts_the_postings_of_what_is_saved_are_taken_over(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    index, settings = tmp_path / "index", settings_for(mini_folder, embedder_folder, store_text=False)
    build(index, settings, TEXTS)
    damage_record(shard_of(index), "d3")
    assert repair_index(index, settings).quarantined == ["d3"]
    build(tmp_path / "fresh", settings, {one: text for one, text in TEXTS.items() if one != "d3"})
    assert scores_of(index, "ferry bees") == scores_of(tmp_path / "fresh", "ferry bees") != {}
    assert valid(index)


@pytest.mark.parametrize(("name", "missing"), [("bm25/data.npy", "postings"), ("dense.faiss", "vectors")])
def test_without_texts_a_damaged_first_stage_cannot_be_made_anew(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, name: str, missing: str
):
    settings = settings_for(mini_folder, embedder_folder, store_text=False)
    build(tmp_path / "index", settings, TEXTS)
    path = shard_of(tmp_path / "index") / "first_stage" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match=f"keeps no texts, and the {missing} of segment"):
        repair_index(tmp_path / "index", settings)


def test_a_killed_repair_leaves_nothing_behind_for_the_next(
    index: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    import indexer.build.build

    damage_record(shard_of(index), "d3")
    with monkeypatch.context() as patch:
        patch.setattr(indexer.build.build, "receipts", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            repair_index(index, settings)
    (index / "generations" / "000007.salvage").mkdir()
    repair_index(index, settings)
    assert sorted(path.name for path in (index / "generations").iterdir()) == ["000001", "000002"]
    assert valid(index)
