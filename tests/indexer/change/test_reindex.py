"""Reindexing: what stays, what is recoded, what is encoded, and that it ends like a build from nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import indexer.build.plan
from indexer.build.counts import BuildCounts
from indexer.build.index_job import Encoders, load_encoders
from indexer.change.add_delete import delete_passages
from indexer.change.reindex import plan_reindex
from indexer.corpus import RejectedLine
from kalm_cache import PassageIndex
from kalm_cache.codec import get_codec
from kalm_cache.errors import IndexMismatchError, IndexNotFoundError, UsageError
from kalm_cache.first_stage.bm25.analysis import Analysis, terms_of
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.checkpoints import MINI, make_checkpoint
from tests.indexer.changes import add, found, numbers_of, payloads_of, reindex, scores_of, texts_of, valid
from tests.indexes import TEXTS, build, lines_of, make_embedder, settings_for

CHANGED = {one: text for one, text in TEXTS.items() if one not in ("d2", "d3")} | {"d4": "edited", "n": "a new one"}


def test_unchanged_passages_are_copied_changed_ones_encoded_missing_ones_dropped(
    index: Path, settings: Settings, encoders: Encoders
):
    before, ordinals = payloads_of(index), numbers_of(index)
    report = reindex(index, settings, encoders, CHANGED)
    assert (report.generation, report.passages, report.reused, report.encoded) == ("000002", 11, 9, 2)
    assert (report.recoded, report.deleted, report.kept, report.why_encoded) == (0, 2, 0, None)
    assert texts_of(index) == CHANGED
    after, now = payloads_of(index), numbers_of(index)
    same = [one for one in CHANGED if CHANGED[one] == TEXTS.get(one)]
    assert {one: after[one] for one in same} == {one: before[one] for one in same}
    assert {one: now[one] for one in same} == {one: ordinals[one] for one in same}
    assert {now["d4"], now["n"]} == {12, 13}
    assert open_current(index).manifest.deleted == 2
    assert valid(index)


def test_missing_passages_stay_when_asked_for(index: Path, settings: Settings, encoders: Encoders):
    report = reindex(index, settings, encoders, {"d4": "edited", "n": "a new one"}, keep_missing=True)
    assert (report.passages, report.reused, report.encoded, report.kept, report.deleted) == (13, 11, 2, 11, 0)
    assert texts_of(index) == TEXTS | {"d4": "edited", "n": "a new one"}
    assert valid(index)


def test_deltas_and_deletions_are_folded_into_one_base(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, {"n": "a new one", "d4": "edited"})
    delete_passages(["d2", "d3"], index)
    ordinals = numbers_of(index)
    report = reindex(index, settings, encoders, CHANGED)
    assert (report.passages, report.reused, report.encoded, report.deleted) == (11, 11, 0, 0)
    manifest = open_current(index).manifest
    assert (len(manifest.segments), "hidden.bin" in manifest.files) == (1, False)
    assert (texts_of(index), numbers_of(index)) == (CHANGED, ordinals)
    assert valid(index)


def test_a_deleted_passage_that_the_corpus_has_comes_back_and_one_that_it_has_not_does_not(
    index: Path, settings: Settings, encoders: Encoders
):
    delete_passages(["d2", "d3"], index)
    report = reindex(index, settings, encoders, {"d2": TEXTS["d2"]}, keep_missing=True)
    assert (report.encoded, report.reused) == (1, 10)
    assert texts_of(index) == {one: text for one, text in TEXTS.items() if one != "d3"}
    assert numbers_of(index)["d2"] == 12


def test_a_reindexed_index_answers_as_one_built_whole(
    index: Path, tmp_path: Path, settings: Settings, encoders: Encoders
):
    reindex(index, settings, encoders, CHANGED)
    build(tmp_path / "whole", settings, CHANGED, encoders=encoders)
    for query in ("ferry", "edited", "a new one"):
        mine, whole_one = found(index, query), found(tmp_path / "whole", query)
        assert {mode: set(ids) for mode, ids in mine.items()} == {mode: set(ids) for mode, ids in whole_one.items()}
        with (
            PassageIndex.open(index, device="cpu") as one,
            PassageIndex.open(tmp_path / "whole", device="cpu") as other,
        ):
            assert one.margins(query, list(CHANGED)) == pytest.approx(other.margins(query, list(CHANGED)), abs=1e-4)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"codec": "fp32"}, {"codec": "fp16"}),
        ({"codec": "fp32"}, {"codec": "int4"}),
        ({"codec": "fp16"}, {"codec": "int8"}),
        ({"codec": "fp16"}, {"codec": "fp16+zstd3"}),
        ({"codec": "bf16"}, {"codec": "int2"}),
        ({"codec": "fp32", "chunk_size": 2}, {"codec": "fp32", "chunk_size": 8}),
        ({"codec": "fp16", "chunk_size": 1}, {"codec": "int4+zstd3", "chunk_size": 32}),
    ],
)
def test_a_coarser_form_is_recoded_and_is_what_encoding_would_have_given(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, stored: dict[str, Any], wanted: dict[str, Any]
):
    index, settings = tmp_path / "index", settings_for(mini_folder, embedder_folder, **({"chunk_size": 4} | wanted))
    build(index, settings_for(mini_folder, embedder_folder, **({"chunk_size": 4} | stored)), TEXTS)
    ordinals = numbers_of(index)
    report = reindex(index, settings, load_encoders(settings), TEXTS | {"n": "a new one"})
    assert (report.recoded, report.encoded, report.reused, report.why_encoded) == (12, 1, 0, None)
    assert numbers_of(index) == ordinals | {"n": 12}
    assert valid(index)
    build(tmp_path / "fresh", settings, TEXTS)
    np.testing.assert_allclose(states_of(index), states_of(tmp_path / "fresh"), atol=tolerance(settings.codec))


def states_of(index: Path) -> np.ndarray[Any, Any]:
    with PassageIndex.open(index, device="cpu") as opened:
        return np.concatenate([one.states.numpy() for one in opened.pooled(list(TEXTS))])


def tolerance(codec: str) -> float:
    """States of the small model are about 1 in size, up to 4; two roundings may fall on two sides of a level's edge."""
    return {"fp32": 1e-5, "fp16": 4e-3, "int8": 0.1, "int4": 1.0, "int2": 4.0}[get_codec(codec).name.partition("+")[0]]


@pytest.mark.parametrize(
    ("stored", "wanted", "why"),
    [
        ({"codec": "int8"}, {"codec": "fp16"}, "states stored as int8 carry its error already"),
        ({"codec": "int8"}, {"codec": "int4"}, "states stored as int8 carry its error already"),
        ({"codec": "int4", "chunk_size": 2}, {"codec": "int4", "chunk_size": 4}, "carry its error already"),
        ({"codec": "fp16"}, {"codec": "fp32"}, "not as fine as fp32 promises"),
        ({"codec": "bf16"}, {"codec": "fp16"}, "not as fine as fp16 promises"),
        ({"chunk_size": 4}, {"chunk_size": 2}, "chunk_size 4 cannot become 2"),
        ({"chunk_size": 4}, {"chunk_size": 6}, "chunk_size 4 cannot become 6"),
        ({"max_length": 1024}, {"max_length": 12}, "max_length 1024 there, 12 here"),
        ({}, {"dtype": "bfloat16"}, "dtype float32 there, bfloat16 here"),
    ],
)
def test_what_cannot_be_recoded_honestly_is_encoded_again_and_the_report_says_why(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, stored: dict[str, Any], wanted: dict[str, Any], why: str
):
    # a passage a batch: its bits may depend on those beside it, which come in another order
    index, settings = tmp_path / "index", settings_for(mini_folder, embedder_folder, **wanted, batch_tokens=1)
    build(index, settings_for(mini_folder, embedder_folder, **stored), TEXTS)
    report = reindex(index, settings, load_encoders(settings), {"d1": TEXTS["d1"]}, keep_missing=True)
    assert (report.passages, report.encoded, report.recoded, report.reused, report.kept) == (12, 12, 0, 0, 11)
    assert report.why_encoded is not None
    assert why in report.why_encoded
    build(tmp_path / "fresh", settings, TEXTS)
    assert payloads_of(index) == payloads_of(tmp_path / "fresh")
    assert valid(index)


def test_another_model_encodes_everything(index: Path, tmp_path: Path, embedder_folder: Path):
    settings = settings_for(make_checkpoint(tmp_path / "other", MINI, seed=1), embedder_folder)
    report = reindex(index, settings, load_encoders(settings), TEXTS)
    assert (report.encoded, report.reused) == (12, 0)
    assert "model" in (report.why_encoded or "")
    assert valid(index)


def test_another_embedder_makes_new_vectors_and_no_new_states(index: Path, tmp_path: Path, mini_folder: Path):
    before = payloads_of(index)
    settings = settings_for(mini_folder, make_embedder(tmp_path / "other", dimension=5))
    report = reindex(index, settings, load_encoders(settings), {"d1": TEXTS["d1"]}, keep_missing=True)
    assert (report.reused, report.encoded) == (12, 0)
    assert payloads_of(index) == before
    build(tmp_path / "fresh", settings, TEXTS)
    assert found(index, "ferry bees") == found(tmp_path / "fresh", "ferry bees")
    assert valid(index)


def test_texts_are_dropped_without_encoding_anything(index: Path, mini_folder: Path, embedder_folder: Path):
    before = payloads_of(index)
    settings = settings_for(mini_folder, embedder_folder, store_text=False)
    report = reindex(index, settings, load_encoders(settings), TEXTS)
    assert (report.reused, report.recoded, report.encoded) == (12, 0, 0)
    assert payloads_of(index) == before
    assert set(texts_of(index).values()) == {None}
    assert valid(index)
    back = settings_for(mini_folder, embedder_folder)
    assert reindex(index, back, load_encoders(back), TEXTS).reused == 12
    assert texts_of(index) == TEXTS
    assert valid(index)


def test_only_new_texts_are_analysed_and_scores_are_those_of_a_fresh_index(
    tmp_path: Path, index: Path, settings: Settings, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
):
    analysed: list[str] = []

    def analyse(texts: Iterable[str], analysis: Analysis) -> Iterator[list[str]]:
        for text in texts:
            analysed.append(text)
            yield from terms_of([text], analysis)

    add(index, settings, encoders, {"x": "bees of the delta"})
    with monkeypatch.context() as patch:
        patch.setattr("kalm_cache.first_stage.bm25.bm25_index.terms_of", analyse)
        reindex(index, settings, encoders, CHANGED | {"x": "bees of the delta"})
    assert sorted(analysed) == sorted(text for one, text in CHANGED.items() if TEXTS.get(one) != text)
    build(tmp_path / "fresh", settings, CHANGED | {"x": "bees of the delta"}, encoders=encoders)
    for query in ("ferry bees", "delta", "Honey"):
        assert scores_of(index, query) == scores_of(tmp_path / "fresh", query)


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_what_has_no_text_is_kept_with_its_postings_and_vectors(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, codec: str
):
    index, settings = tmp_path / "index", settings_for(mini_folder, embedder_folder, store_text=False)
    build(index, settings, TEXTS)
    wanted = settings_for(mini_folder, embedder_folder, store_text=False, codec=codec)
    news = {"n": "honey bees dance", "d1": "the ferry leaves"}
    report = reindex(index, wanted, load_encoders(wanted), news, keep_missing=True)
    assert (report.reused + report.recoded, report.encoded, report.kept) == (11, 2, 11)
    build(tmp_path / "fresh", settings, TEXTS | news)
    assert scores_of(index, "ferry bees") == scores_of(tmp_path / "fresh", "ferry bees") != {}
    assert found(index, "ferry bees")["dense"] == found(tmp_path / "fresh", "ferry bees")["dense"]
    assert valid(index)


@pytest.mark.parametrize("change", [{"store_text": True}, {"chunk_size": 6}, {"bm25": True}])
def test_what_has_no_text_cannot_be_kept_where_a_text_is_needed(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, change: dict[str, Any]
):
    index = tmp_path / "index"
    built = {"store_text": False, "bm25": "bm25" not in change}
    settings = settings_for(mini_folder, embedder_folder, **built)
    build(index, settings, TEXTS)
    wanted = settings_for(mini_folder, embedder_folder, **(built | change))
    encoders = load_encoders(wanted)
    with pytest.raises(UsageError, match="keeps no texts"):
        reindex(index, wanted, encoders, {"n": "new"}, keep_missing=True)
    with pytest.raises(UsageError, match="keeps no texts"):
        plan_reindex(lines_of({"n": "new"}), index, encoders, keep_missing=True, on_reject=lambda line: None)
    assert reindex(index, wanted, encoders, TEXTS | {"n": "new"}).passages == 13


def test_a_dry_run_says_the_same_and_changes_nothing(index: Path, settings: Settings, encoders: Encoders):
    add(index, settings, encoders, {"x": "added", "d4": "edited"})
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    for keep in (False, True):
        plan = plan_reindex(lines_of(CHANGED), index, encoders, keep_missing=keep, on_reject=lambda line: None)
        assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
        own = Path(shutil.copytree(index, index.with_name(f"done-{keep}")))
        done = reindex(own, settings, encoders, CHANGED, keep_missing=keep)
        for name in ("passages", "reused", "recoded", "encoded", "deleted", "kept", "rejected", "why_encoded"):
            assert getattr(plan, name) == getattr(done, name), name


def test_rejected_lines_are_counted_and_handed_on(index: Path, settings: Settings, encoders: Encoders):
    rejected: list[RejectedLine] = []
    report = reindex(index, settings, encoders, [*TEXTS.items(), ("d1", "again")], on_reject=rejected.append)
    assert (report.rejected, [line.location for line in rejected]) == (1, ["c:13"])
    assert report.reused == 12


def test_the_report_compares_with_a_full_build(tmp_path: Path, settings: Settings, encoders: Encoders):
    many = {f"p{i}": f"passage {i} of the ferry and the bees" for i in range(100)}
    build(tmp_path / "index", settings, many, encoders=encoders)
    rate = open_current(tmp_path / "index").manifest.passages_per_second
    assert rate is not None
    report = reindex(tmp_path / "index", settings, encoders, many | {"p0": "edited"})
    assert report.full_build_passages_per_second == rate
    assert report.full_build_seconds == pytest.approx(100 / rate, abs=1e-3)
    assert report.speedup == pytest.approx(report.full_build_seconds / report.seconds, rel=0.1)
    assert open_current(tmp_path / "index").manifest.passages_per_second == rate  # for the next one


def test_where_nothing_was_published_there_is_nothing_to_reindex(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    with pytest.raises(IndexNotFoundError):
        reindex(tmp_path / "none", settings, encoders, TEXTS)
    assert not (tmp_path / "none").exists()


# Interruption


@pytest.mark.parametrize("wanted", [{}, {"codec": "int8", "chunk_size": 8}, {"max_length": 20}])
@pytest.mark.parametrize("after", [4, 12, 20])
def test_an_interrupted_reindex_goes_on_and_ends_like_one_that_was_not_interrupted(
    index: Path,
    tmp_path: Path,
    mini_folder: Path,
    embedder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, Any],
    after: int,
):
    monkeypatch.setattr(indexer.build.plan, "WINDOW", 4)
    settings = settings_for(mini_folder, embedder_folder, **wanted)
    encoders = load_encoders(settings)
    corpus = CHANGED | {f"n{i}": f"the new passage {i}" for i in range(10)}
    undisturbed = Path(shutil.copytree(index, tmp_path / "undisturbed"))
    report = reindex(undisturbed, settings, encoders, corpus, keep_missing=True)

    def stop(progress: BuildCounts) -> None:
        if progress.done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(index, settings, encoders, corpus, keep_missing=True, on_progress=stop)
    assert open_current(index).name == "000001"
    again = reindex(index, settings, encoders, corpus, keep_missing=True)
    assert (again.passages, again.reused + again.recoded + again.encoded) == (report.passages, report.passages)
    assert (texts_of(index), payloads_of(index)) == (texts_of(undisturbed), payloads_of(undisturbed))
    assert numbers_of(index) == numbers_of(undisturbed)
    assert valid(index)


def test_a_reindex_is_resumed_with_the_same_settings_only(
    index: Path, settings: Settings, encoders: Encoders, mini_folder: Path, embedder_folder: Path
):
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(index, settings, encoders, CHANGED, on_progress=stop)
    other = settings_for(mini_folder, embedder_folder, chunk_size=8)
    with pytest.raises(IndexMismatchError, match="chunk_size 4 there, 8 here"):
        reindex(index, other, load_encoders(other), CHANGED)
    assert reindex(index, settings, encoders, CHANGED).passages == 11


def test_deletions_during_an_interruption_stay_deleted(index: Path, settings: Settings, encoders: Encoders):
    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reindex(index, settings, encoders, {"n": "new"}, keep_missing=True, on_progress=stop)
    assert delete_passages(["d1"], index).generation == "000003"
    report = reindex(index, settings, encoders, {"n": "new"}, keep_missing=True)
    assert report.generation == "000004"
    assert texts_of(index) == {one: text for one, text in TEXTS.items() if one != "d1"} | {"n": "new"}
