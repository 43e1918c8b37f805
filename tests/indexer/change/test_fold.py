"""Folding: many small segments become few, and every answer stays what it was."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

import indexer.change.fold
import indexer.change.retention
from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.change.fold import FACTOR, FOLDED_PASSAGES, Foldable, choose
from indexer.change.fold_job import FoldReport, run_fold
from indexer.change.retention import LOOKED_AT_FROM, STEPS_KEPT
from indexer.change.rollback import roll_back
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.generations.generation import open_current, published_names
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import PassageStore
from kalm_cache.storage.record import Record
from tests.indexer.changes import add, found, texts_of, valid
from tests.indexes import TEXTS, build, settings_for
from tests.torture.content import content

SEVEN = FACTOR - 1
QUERIES = ("ferry island", "bees", "rarewordx gravity", "passage number 3")


def fold(index: Path, **options: Any) -> FoldReport:
    return run_fold(index, **({"on_progress": lambda counts: None} | options))


def text_of(number: int) -> str:
    return f"added passage number {number} of the ferry" + " and bees" * (number % 3) + " rarewordx" * (number % 2)


def add_one_by_one(index: Path, settings: Settings, encoders: Encoders, numbers: range) -> None:
    for number in numbers:
        add(index, settings, encoders, {f"n{number}": text_of(number)})


@pytest.fixture(scope="module")
def seven(clean: Path, tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of seven additions of one passage each: with one more, they fold."""
    index = Path(shutil.copytree(clean, tmp_path_factory.mktemp("seven") / "index"))
    add_one_by_one(index, settings, encoders, range(SEVEN))
    return index


@pytest.fixture
def almost(seven: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(seven, tmp_path / "almost"))


@pytest.fixture
def eight(almost: Path, settings: Settings, encoders: Encoders) -> Path:
    """The same with one more, that folded nothing, as if the budget were too small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer.change.fold, "FOLD_BYTES", 0)
        add_one_by_one(almost, settings, encoders, range(SEVEN, FACTOR))
    return almost


def sizes(*passages: int) -> list[Foldable]:
    return [Foldable(count, 1000 * count) for count in passages]


def test_eight_of_a_tier_are_folded_and_seven_are_not():
    assert choose(sizes(*[1] * 7)) is None
    assert choose(sizes(*[1] * 8)) == (0, 8)
    assert choose(sizes(8, 8, *[1] * 8)) == (2, 10)
    assert choose(sizes(8, 8, *[7] * 7)) is None


def test_what_fills_the_next_tier_is_folded_with_it_at_once():
    assert choose(sizes(*[8] * 7, *[1] * 8)) == (0, 15)
    assert choose(sizes(100, *[8] * 7, *[1] * 8)) == (1, 16)


def test_a_small_segment_before_a_large_one_counts_as_the_large_one():
    assert choose(sizes(1, 1, 1, 1, 500, 1, 1, 1)) is None
    assert choose(sizes(*[1] * 7, 500)) == (0, 8)


def test_a_full_tier_in_the_middle_is_folded_without_the_newer_ones():
    assert choose(sizes(*[64] * 8, 1, 1)) == (0, 8)


def test_a_fold_stays_within_its_budget():
    assert choose(sizes(*[8] * 7, *[1] * 8), limit_bytes=8_000) == (7, 15)
    assert choose(sizes(*[1] * 8), limit_bytes=7_999) is None


def test_a_folded_segment_stays_so_small_that_its_vectors_are_searched_exactly():
    assert choose(sizes(*[FOLDED_PASSAGES // 8] * 8)) == (0, 8)
    assert choose(sizes(*[FOLDED_PASSAGES // 8 + 1] * 8)) is None


@pytest.mark.parametrize("many", [100, 4096, 10_000])
def test_additions_of_one_passage_each_leave_seven_segments_a_tier_at_most(many: int):
    segments: list[Foldable] = []
    copied = 0
    for _ in range(many):
        segments += sizes(1)
        while (span := choose(segments)) is not None:
            total = sum(one.passages for one in segments[slice(*span)])
            segments[slice(*span)] = sizes(total)
            copied += total
    digits = [int(digit) for digit in f"{many:o}"]
    assert len(segments) == sum(digits)  # as the digits of the count to the base of 8
    assert copied <= many * (len(digits) - 1)  # each passage once a tier


def test_additions_fold_by_themselves_and_answer_as_if_they_had_not(
    seven: Path, eight: Path, settings: Settings, encoders: Encoders, tmp_path: Path
):
    folding = Path(shutil.copytree(seven, tmp_path / "folding"))
    add_one_by_one(folding, settings, encoders, range(SEVEN, FACTOR))
    assert len(open_current(eight).manifest.segments) == 1 + FACTOR
    assert [segment.counts.passages for segment in open_current(folding).manifest.segments] == [12, FACTOR]
    assert open_current(folding).name == open_current(eight).name  # it is one generation, not two
    assert content(folding) == content(eight)
    assert valid(folding)


def test_a_search_finds_the_same_with_the_same_scores_before_and_after(
    eight: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(indexer.change.fold, "FOLD_BYTES", 0)
        add(eight, settings, encoders, {"n3": "another text of the ferry", "d2": "an edited passage of bees"})
        delete_passages(["n5", "d4"], eight)
    before, lists = content(eight), [found(eight, query) for query in QUERIES]
    report = fold(eight)
    assert (report.segments_before, report.segments) == (1 + FACTOR + 1, 2)
    assert report.left_out == 2  # n3's first text and n5; d2 and d4 are in the base
    assert content(eight) == before
    assert [found(eight, query) for query in QUERIES] == lists
    assert valid(eight)
    assert fold(eight).generation == report.generation  # there is nothing left to fold


def test_folding_everything_leaves_one_base_that_is_as_one_that_was_built_whole(
    almost: Path, settings: Settings, encoders: Encoders, tmp_path: Path
):
    delete_passages(["d3"], almost)
    report = fold(almost, everything=True)
    assert (report.segments, report.left_out, report.passages) == (1, 1, 18)
    texts = {one: text for one, text in TEXTS.items() if one != "d3"} | {f"n{i}": text_of(i) for i in range(SEVEN)}
    assert texts_of(almost) == texts
    build(tmp_path / "whole", settings, texts, encoders=encoders)
    for query in QUERIES:
        assert found(almost, query)["dense"] == found(tmp_path / "whole", query)["dense"]
    assert valid(almost)
    assert fold(almost, everything=True).generation == report.generation


def test_an_index_without_texts_is_folded_too(
    mini_folder: Path, embedder_folder: Path, encoders: Encoders, tmp_path: Path
):
    from indexer.build.index_job import load_encoders

    settings = settings_for(mini_folder, embedder_folder, store_text=False)
    without = load_encoders(settings)
    build(tmp_path / "index", settings, TEXTS, encoders=without)
    add_one_by_one(tmp_path / "index", settings, without, range(FACTOR))
    assert len(open_current(tmp_path / "index").manifest.segments) == 2
    assert "n3" in found(tmp_path / "index", "rarewordx")["bm25"]
    assert valid(tmp_path / "index")


def test_when_all_that_was_added_is_deleted_its_segments_go(eight: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer.change.fold, "FOLD_BYTES", 0)
        delete_passages([f"n{i}" for i in range(FACTOR)], eight)
    next_ordinal = open_current(eight).manifest.next_ordinal
    assert fold(eight).segments == 1
    assert open_current(eight).manifest.next_ordinal == next_ordinal  # none is given again
    assert texts_of(eight) == TEXTS
    assert valid(eight)


def test_one_step_back_is_the_index_before_the_change_that_folded(almost: Path, settings: Settings, encoders: Encoders):
    before = texts_of(almost)
    add_one_by_one(almost, settings, encoders, range(SEVEN, FACTOR))
    assert len(open_current(almost).manifest.segments) == 2
    roll_back(almost)
    assert texts_of(almost) == before


def test_an_addition_is_there_although_its_fold_fails(
    almost: Path, settings: Settings, encoders: Encoders, caplog: pytest.LogCaptureFixture
):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer.change.fold, "build_segment", full)
        add(almost, settings, encoders, {"last": "one more ferry"})
    assert "small segments are not folded" in caplog.text
    assert texts_of(almost)["last"] == "one more ferry"
    assert len(open_current(almost).manifest.segments) == 1 + FACTOR
    assert valid(almost)
    assert fold(almost).segments == 2


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("file", ["store.json", "states.lmdb"])
def test_a_damaged_segment_is_not_folded_away(eight: Path, file: str, everything: bool):
    live = open_current(eight)
    path = live.folder / "shards" / live.manifest.segments[3].name / file
    damaged = bytearray(path.read_bytes())
    at = 12 if file == "store.json" else damaged.index(_payload_of(path.parent)) + 1
    damaged[at] ^= 1
    path.unlink()  # the file has other names
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="verify --repair"):
        fold(eight, everything=everything)
    assert open_current(eight).name == live.name


def _payload_of(segment: Path) -> bytes:
    with PassageStore(segment) as store, store.snapshot() as snapshot:
        (doc_id,) = (key.decode() for key in store.keys())  # noqa: SIM118 (not a dict)
        (record,) = snapshot.records([doc_id])
        assert isinstance(record, Record)
        return bytes(record.payload)


def test_of_many_small_changes_a_few_generations_are_kept_and_every_whole_build(almost: Path):
    small = [f"n{i}" for i in range(SEVEN)]
    for doc_id in (*small, *list(TEXTS)[: LOOKED_AT_FROM - 2 * SEVEN]):
        delete_passages([doc_id], almost)
    live = int(open_current(almost).name)
    assert live == LOOKED_AT_FROM + 1
    assert [int(name) for name in published_names(almost)] == [1, *range(live - STEPS_KEPT, live + 1)]


def test_a_generation_that_is_read_is_kept(almost: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexer.change.retention, "LOOKED_AT_FROM", 0)
    monkeypatch.setattr(indexer.change.retention, "STEPS_KEPT", 1)
    with PassageIndex.open(almost, device="cpu"):
        delete_passages(["n1"], almost)
        delete_passages(["n2"], almost)
        assert published_names(almost) == ["000001", "000008", "000009", "000010"]
    delete_passages(["n3"], almost)
    assert published_names(almost) == ["000001", "000010", "000011"]


def test_where_nothing_was_published_nothing_is_made(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        fold(tmp_path / "none")
    assert not (tmp_path / "none").exists()
