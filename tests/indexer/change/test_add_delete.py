"""`add` and `delete`: visible at once, at the cost of what changes, and never half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import indexer.build.plan
import indexer.change.add_delete
from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, load_encoders
from indexer.change.add_delete import delete_passages
from indexer.corpus import RejectedLine
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexMismatchError, IndexNotFoundError, StoreError, UnknownIdError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import add, found, numbers_of, payloads_of, texts_of, valid
from tests.indexes import TEXTS, build, settings_for

EDITED = {"d1": "gravity attracts the ferry", "d7": "bees carry Beijing to the hive"}
NEW = {"n1": "a new passage about the rarewordx", "n2": "the last ferry of the morning"}


def test_added_and_replaced_passages_are_there_at_once_and_nothing_else_changes(
    index: Path, settings: Settings, encoders: Encoders
):
    before, ordinals = payloads_of(index), numbers_of(index)
    report = add(index, settings, encoders, EDITED | NEW)
    assert (report.generation, report.passages) == ("000002", 14)
    assert (report.added, report.replaced, report.unchanged, report.encoded) == (2, 2, 0, 4)
    assert texts_of(index) == TEXTS | EDITED | NEW
    after = payloads_of(index)
    assert {one: after[one] for one in TEXTS if one not in EDITED} == {
        one: before[one] for one in TEXTS if one not in EDITED
    }
    now = numbers_of(index)
    assert {one: now[one] for one in TEXTS if one not in EDITED} == {
        one: ordinals[one] for one in TEXTS if one not in EDITED
    }
    assert {now[one] for one in EDITED | NEW} == {12, 13, 14, 15}
    assert valid(index)


def test_an_index_with_additions_answers_as_one_that_was_built_whole(
    index: Path, tmp_path: Path, settings: Settings, encoders: Encoders
):
    add(index, settings, encoders, EDITED | NEW)
    build(tmp_path / "whole", settings, TEXTS | EDITED | NEW, encoders=encoders)
    for query in ("ferry", "rarewordx", "bees and gravity"):
        with (
            PassageIndex.open(index, device="cpu") as delta,
            PassageIndex.open(tmp_path / "whole", device="cpu") as one,
        ):
            ids = list(TEXTS | NEW)
            assert delta.margins(query, ids) == pytest.approx(one.margins(query, ids), abs=1e-4)
            assert delta.rerank(query, ids).results[0].doc_id == one.rerank(query, ids).results[0].doc_id
            assert len(delta) == len(one) == 14
        assert found(index, query)["dense"] == found(tmp_path / "whole", query)["dense"]
        assert set(found(index, query)["bm25"]) == set(found(tmp_path / "whole", query)["bm25"])


def test_counts_are_those_of_what_is_shown(index: Path, tmp_path: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, EDITED | NEW)
    delete_passages(["d2", "n1"], index)
    build(tmp_path / "whole", settings, texts_of(index), encoders=encoders)  # type: ignore[arg-type]
    assert open_current(index).manifest.counts == open_current(tmp_path / "whole").manifest.counts


def test_an_addition_links_what_is_stored_and_hashes_only_what_is_new(
    index: Path, settings: Settings, encoders: Encoders
):
    add(index, settings, encoders, NEW)
    parent, live = index / "generations" / "000001", index / "generations" / "000002"
    names = [name for name in open_current(index).manifest.files if name.startswith("shards/00000/")]
    assert names
    for name in names:
        assert (parent / name).samefile(live / name)


def test_where_there_are_no_hard_links_files_are_copied(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    def refuse(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    add(index, settings, encoders, NEW)
    assert not (index / "generations/000001/shards/00000/states.lmdb").samefile(
        index / "generations/000002/shards/00000/states.lmdb"
    )
    assert valid(index)


def test_what_is_in_the_index_already_is_left_as_it_is(index: Path, settings: Settings, encoders: Encoders):
    report = add(index, settings, encoders, TEXTS)
    assert (report.generation, report.unchanged, report.added, report.replaced) == ("000001", 12, 0, 0)
    assert sorted(path.name for path in (index / "generations").iterdir()) == ["000001"]


def test_additions_pile_up_and_the_newest_text_wins(index: Path, settings: Settings, encoders: Encoders):
    for text in ("first version", "second version", "third version of the ferry"):
        add(index, settings, encoders, {"d3": text, "x": text})
    assert len(open_current(index).manifest.segments) == 4
    assert texts_of(index) == TEXTS | {"d3": text, "x": text}
    assert found(index, "version ferry third")["bm25"][0] in ("d3", "x")
    assert "d3" in found(index, "version", k=100)["bm25"]
    assert valid(index)


def test_duplicates_within_the_file_are_rejected_also_of_unchanged_passages(
    index: Path, settings: Settings, encoders: Encoders
):
    rejected: list[RejectedLine] = []
    pairs = [("d1", TEXTS["d1"]), ("d1", "again"), ("n", "new"), ("n", "new again")]
    report = add(index, settings, encoders, pairs, on_reject=rejected.append)
    assert (report.added, report.replaced, report.unchanged, report.rejected) == (1, 0, 1, 2)
    assert [(line.location, line.reason.split(";")[0]) for line in rejected] == [
        ("c:2", "duplicate id, first at c:1"),
        ("c:4", "duplicate id, first at c:3"),
    ]
    assert texts_of(index)["d1"] == TEXTS["d1"]


def test_deleted_passages_are_nowhere_at_once(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, NEW)
    report = delete_passages(["d3", "n1", "d3"], index)
    assert (report.generation, report.deleted, report.unknown, report.passages) == ("000003", 2, [], 12)
    left = {one: text for one, text in (TEXTS | NEW).items() if one not in ("d3", "n1")}
    assert texts_of(index) == left
    with PassageIndex.open(index, device="cpu") as opened:
        assert len(opened) == 12
        with pytest.raises(UnknownIdError, match="'d3'"):
            opened.rerank("ferry", ["d1", "d3"])
        assert {one.doc_id for one in opened.search("ferry", k=100, top_n=None, first_stage="dense").results} == set(
            left
        )
    assert "n1" not in found(index, "rarewordx")["bm25"]
    assert valid(index)


def test_a_deleted_passage_can_be_added_again_under_a_new_number(index: Path, settings: Settings, encoders: Encoders):
    ordinal = numbers_of(index)["d3"]
    delete_passages(["d3"], index)
    report = add(index, settings, encoders, {"d3": TEXTS["d3"]})
    assert (report.added, report.replaced) == (1, 0)
    assert texts_of(index) == TEXTS
    assert numbers_of(index)["d3"] not in (ordinal, *range(12))
    assert valid(index)


def test_all_passages_can_be_deleted(index: Path, settings: Settings, encoders: Encoders):
    assert delete_passages(list(TEXTS), index).passages == 0
    assert texts_of(index) == {}
    with PassageIndex.open(index, device="cpu") as opened:
        for mode in opened.first_stage.modes:
            assert opened.search("ferry", first_stage=mode).results == []
    assert valid(index)
    add(index, settings, encoders, NEW)
    assert texts_of(index) == NEW
    assert valid(index)


def test_unknown_ids_are_reported_and_the_others_deleted(index: Path):
    report = delete_passages(["nope", "d1", ""], index)
    assert (report.deleted, report.unknown) == (1, ["nope", ""])
    with pytest.raises(UnknownIdError, match="2 of the ids are not in the index: 'd1', 'nope'"):
        delete_passages(["d1", "nope"], index)
    assert open_current(index).name == "000002"


def test_readers_keep_what_they_opened_while_the_index_changes(index: Path, settings: Settings, encoders: Encoders):
    with PassageIndex.open(index, device="cpu") as serving:
        before = serving.margins("ferry", list(TEXTS))
        add(index, settings, encoders, EDITED | NEW)
        delete_passages(["d2"], index)
        with PassageIndex.open(index, device="cpu") as newer:
            assert (len(serving), len(newer)) == (12, 13)
            assert newer.margins("ferry", ["d0"]) == pytest.approx(before[:1], abs=1e-5)
        assert serving.margins("ferry", list(TEXTS)) == before


def test_an_index_can_only_be_added_to_with_what_it_was_built_with(
    index: Path, mini_folder: Path, embedder_folder: Path
):
    other = settings_for(mini_folder, embedder_folder, chunk_size=8)
    with pytest.raises(IndexMismatchError, match=r"chunk_size 4 there, 8 here.*kalm-cache reindex CORPUS"):
        add(index, other, load_encoders(other), NEW)


def test_where_nothing_was_published_nothing_is_made(tmp_path: Path, settings: Settings, encoders: Encoders):
    for change in (
        lambda: add(tmp_path / "none", settings, encoders, NEW),
        lambda: delete_passages(["a"], tmp_path / "none"),
    ):
        with pytest.raises(IndexNotFoundError):
            change()
    assert not (tmp_path / "none").exists()


def test_an_interrupted_addition_goes_on_where_it_stopped(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(indexer.build.plan, "WINDOW", 4)
    many = {f"n{i}": f"the new passage {i} of the ferry" for i in range(20)}

    def stop(progress: BuildCounts) -> None:
        if progress.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, settings, encoders, many, on_progress=stop)
    assert open_current(index).name == "000001"
    report = add(index, settings, encoders, many)
    assert report.resumed >= 8
    assert report.resumed + report.encoded == report.added == 20
    assert texts_of(index) == TEXTS | many
    assert valid(index)


def test_a_deletion_goes_before_an_unfinished_addition_which_then_goes_on(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexer.change.add_delete, "publish_on_parent", die)
        with pytest.raises(KeyboardInterrupt):
            add(index, settings, encoders, NEW | EDITED)
    assert delete_passages(["d1", "d2"], index).generation == "000003"
    report = add(index, settings, encoders, NEW | EDITED)
    assert (report.generation, report.resumed, report.encoded) == ("000004", 4, 0)
    assert texts_of(index) == {one: text for one, text in (TEXTS | NEW | EDITED).items() if one != "d2"}
    assert (report.added, report.replaced) == (3, 1)
    assert valid(index)


def test_another_job_is_refused_while_an_addition_is_unfinished_and_told_why(
    index: Path, settings: Settings, encoders: Encoders
):
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, settings, encoders, NEW, on_progress=stop)
    with pytest.raises(StoreError, match="an unfinished `kalm-cache add`; run that again to finish it, or remove"):
        build(index, settings, TEXTS, encoders=encoders)


@pytest.mark.parametrize("step", range(1, 5))
def test_a_deletion_that_dies_is_done_or_not(index: Path, monkeypatch: pytest.MonkeyPatch, step: int):
    from kalm_cache.generations import publish
    from kalm_cache.storage import durable

    steps = 0

    def dying(source: Path, target: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == step + 1:  # the first one is the build file
            raise KeyboardInterrupt
        source.replace(target)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "rename_durably", dying)
        patch.setattr(publish, "rename_durably", dying)
        with pytest.raises(KeyboardInterrupt):
            delete_passages(["d1"], index)
    assert texts_of(index) == TEXTS
    if step == 4:  # all but `CURRENT` was written: the next command finishes it
        with pytest.raises(UnknownIdError):
            delete_passages(["d1"], index)
    else:
        assert delete_passages(["d1"], index).deleted == 1
    assert texts_of(index) == {one: text for one, text in TEXTS.items() if one != "d1"}
    assert not list((index / "generations").glob("*.building"))
    assert valid(index)


def test_a_file_that_vanishes_while_it_is_linked_is_a_store_error(
    index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=r"No space left on device; the disk is full: free some space; what was"):
        add(index, settings, encoders, NEW)
    monkeypatch.undo()
    assert texts_of(index) == TEXTS
    assert add(index, settings, encoders, NEW).resumed == 2
