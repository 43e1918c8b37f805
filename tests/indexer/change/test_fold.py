"""Folding: many small segments become few, and every answer stays what it was."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

import indexer.change.fold
import indexer.change.publish_beside
from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.change.fold import FACTOR, FOLDED_PASSAGES, Foldable, choose
from indexer.change.fold_job import FoldReport, run_fold
from indexer.change.retention import STEPS_KEPT
from indexer.change.rollback import roll_back
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexNotFoundError, StoreError
from kalm_cache.generations.generation import open_current, published_names
from kalm_cache.settings import Settings
from tests.indexer.changes import add, found, texts_of, valid
from tests.indexes import TEXTS, build, settings_for
from tests.torture.content import content

QUERIES = ("ferry island", "bees", "rarewordx gravity", "passage number 3")


def fold(index: Path, **options: Any) -> FoldReport:
    return run_fold(index, **({"on_progress": lambda counts: None} | options))


def text_of(number: int) -> str:
    return f"added passage number {number} of the ferry" + " and bees" * (number % 3) + " rarewordx" * (number % 2)


def add_one_by_one(index: Path, settings: Settings, encoders: Encoders, numbers: range) -> None:
    for number in numbers:
        add(index, settings, encoders, {f"n{number}": text_of(number)})


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Additions fold nothing, as if their budget were too small; `undo()` brings folding back."""
    monkeypatch.setattr(indexer.change.fold, "FOLD_BYTES", 0)
    return monkeypatch


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
    index: Path, settings: Settings, encoders: Encoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    other = Path(shutil.copytree(index, tmp_path / "other"))
    add_one_by_one(index, settings, encoders, range(FACTOR + 1))
    monkeypatch.setattr(indexer.change.fold, "FOLD_BYTES", 0)
    add_one_by_one(other, settings, encoders, range(FACTOR + 1))
    assert len(open_current(other).manifest.segments) == 1 + FACTOR + 1
    assert [segment.counts.passages for segment in open_current(index).manifest.segments] == [12, FACTOR, 1]
    assert open_current(index).name == open_current(other).name
    assert content(index) == content(other)
    assert valid(index)


def test_a_search_finds_the_same_with_the_same_scores_before_and_after(
    index: Path, settings: Settings, encoders: Encoders, unfolded: pytest.MonkeyPatch
):
    add_one_by_one(index, settings, encoders, range(2 * FACTOR))
    add(index, settings, encoders, {"n3": "another text of the ferry", "d2": "an edited passage of bees"})
    delete_passages(["n5", "d4"], index)
    before, lists = content(index), [found(index, query) for query in QUERIES]
    with PassageIndex.open(index, device="cpu") as opened:
        answers = [opened.search(query).results for query in QUERIES]
    report = fold(index)
    assert (report.segments_before, report.segments) == (1 + 2 * FACTOR + 1, 2)
    assert report.left_out == 2  # n3's first text and n5; d2 and d4 are in the base
    assert content(index) == before
    assert [found(index, query) for query in QUERIES] == lists
    with PassageIndex.open(index, device="cpu") as opened:
        assert [opened.search(query).results for query in QUERIES] == answers
    assert valid(index)
    assert fold(index).generation == report.generation  # there is nothing left to fold


def test_folding_everything_leaves_one_base_that_is_as_one_that_was_built_whole(
    index: Path, settings: Settings, encoders: Encoders, tmp_path: Path
):
    add_one_by_one(index, settings, encoders, range(3))
    delete_passages(["d3"], index)
    report = fold(index, everything=True)
    assert (report.segments, report.left_out, report.passages) == (1, 1, 14)
    texts = texts_of(index)
    assert texts == {one: text for one, text in TEXTS.items() if one != "d3"} | {f"n{i}": text_of(i) for i in range(3)}
    build(tmp_path / "whole", settings, texts, encoders=encoders)  # type: ignore[arg-type]
    for query in QUERIES:
        assert found(index, query)["dense"] == found(tmp_path / "whole", query)["dense"]
    assert valid(index)
    assert fold(index, everything=True).generation == report.generation


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


def test_when_all_that_was_added_is_deleted_its_segments_go(
    index: Path, settings: Settings, encoders: Encoders, unfolded: pytest.MonkeyPatch
):
    add_one_by_one(index, settings, encoders, range(FACTOR))
    delete_passages([f"n{i}" for i in range(FACTOR)], index)
    next_ordinal = open_current(index).manifest.next_ordinal
    assert fold(index).segments == 1
    assert open_current(index).manifest.next_ordinal == next_ordinal  # none is given again
    assert texts_of(index) == TEXTS
    assert valid(index)


def test_one_step_back_is_the_index_before_the_change_that_folded(index: Path, settings: Settings, encoders: Encoders):
    add_one_by_one(index, settings, encoders, range(FACTOR - 1))
    before = texts_of(index)
    add_one_by_one(index, settings, encoders, range(FACTOR, FACTOR + 1))
    assert len(open_current(index).manifest.segments) == 2
    roll_back(index)
    assert texts_of(index) == before
    assert valid(index)


def test_an_addition_is_there_although_its_fold_fails(
    index: Path,
    settings: Settings,
    encoders: Encoders,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    add_one_by_one(index, settings, encoders, range(FACTOR - 1))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(indexer.change.fold, "build_segment", full)
        add(index, settings, encoders, {"last": "one more ferry"})
    assert "small segments are not folded" in caplog.text
    assert texts_of(index)["last"] == "one more ferry"
    assert len(open_current(index).manifest.segments) == 1 + FACTOR
    assert valid(index)
    assert fold(index).segments == 2


def test_a_damaged_segment_is_not_folded_away(
    index: Path, settings: Settings, encoders: Encoders, unfolded: pytest.MonkeyPatch
):
    add_one_by_one(index, settings, encoders, range(FACTOR))
    live = open_current(index)
    states = live.folder / "shards" / live.manifest.segments[3].name / "states.lmdb"
    damaged = bytearray(states.read_bytes())
    damaged[-40] ^= 1
    states.unlink()  # the file has other names
    states.write_bytes(damaged)
    with pytest.raises(StoreError):
        fold(index)
    assert open_current(index).name == live.name


def test_of_many_small_changes_a_few_generations_are_kept_and_every_whole_build(
    index: Path, settings: Settings, encoders: Encoders
):
    add_one_by_one(index, settings, encoders, range(STEPS_KEPT + 4))
    names = published_names(index)
    live = int(open_current(index).name)
    assert [int(name) for name in names] == [1, *range(live - STEPS_KEPT, live + 1)]


def test_a_generation_that_is_read_is_kept_until_it_is_not(index: Path, settings: Settings, encoders: Encoders):
    add_one_by_one(index, settings, encoders, range(1))
    read = open_current(index).name
    with PassageIndex.open(index, device="cpu"):
        add_one_by_one(index, settings, encoders, range(1, STEPS_KEPT + 3))
        assert read in published_names(index)
    add_one_by_one(index, settings, encoders, range(STEPS_KEPT + 3, STEPS_KEPT + 4))
    assert read not in published_names(index)


def test_where_nothing_was_published_nothing_is_made(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        fold(tmp_path / "none")
    assert not (tmp_path / "none").exists()
