"""A published index against the reranker that encodes on the fly: its states, margins and answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.build.index_job import load_encoders
from indexer.change.add_delete import add_passages, delete_passages
from kalm_cache import PassageIndex
from kalm_cache.errors import (
    IndexMismatchError,
    StoreError,
    UnknownIdError,
    UsageError,
)
from kalm_cache.reranker import KaLMReranker
from kalm_cache.scoring.query_side import score_of
from tests.index.asked import IDS, QUERIES, TOLERANCE
from tests.indexes import TEXTS, build, lines_of, settings_for


def on_the_fly(reranker: KaLMReranker, query: str) -> list[float]:
    scored = reranker.predict([(query, text) for text in TEXTS.values()], return_margin=True)
    return [one["margin"] for one in scored]


@pytest.mark.parametrize("codec", TOLERANCE)
@pytest.mark.parametrize("query", QUERIES)
def test_cached_margins_equal_those_computed_on_the_fly(
    folders: dict[str, Path], mini_reranker: KaLMReranker, codec: str, query: str
):
    with PassageIndex.open(folders[codec], device="cpu") as index:
        cached = index.margins(query, IDS)
    expected = on_the_fly(mini_reranker, query)
    np.testing.assert_allclose(cached, expected, atol=TOLERANCE[codec], rtol=TOLERANCE[codec])
    assert np.ptp(expected) > 10 * TOLERANCE[codec]  # or the comparison would say nothing


def test_stored_states_are_those_of_the_encoder_within_half_precision(index: PassageIndex, mini_reranker: KaLMReranker):
    for cached, computed in zip(
        (passage.states for passage in index.pooled(IDS)), mini_reranker.encode(list(TEXTS.values())), strict=True
    ):
        torch.testing.assert_close(cached, computed.float(), rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [8, 12, 64])
def test_a_multiple_of_the_stored_chunk_size_serves_without_encoding_again(
    index: PassageIndex, mini_folder: Path, chunk_size: int
):
    coarser = KaLMReranker(str(mini_folder), device="cpu", chunk_size=chunk_size)
    cached = index.margins(QUERIES[0], IDS, chunk_size=chunk_size)
    np.testing.assert_allclose(cached, on_the_fly(coarser, QUERIES[0]), atol=TOLERANCE["fp16"], rtol=TOLERANCE["fp16"])


def test_a_chunk_size_given_at_opening_is_the_default_of_every_answer(folders: dict[str, Path], index: PassageIndex):
    with PassageIndex.open(folders["fp16"], device="cpu", chunk_size=16) as coarse:
        assert coarse.margins(QUERIES[0], IDS) == index.margins(QUERIES[0], IDS, chunk_size=16)
        assert coarse.margins(QUERIES[0], IDS, chunk_size=4) == index.margins(QUERIES[0], IDS)


@pytest.mark.parametrize("chunk_size", [0, -4, 1, 2, 6])
def test_any_other_chunk_size_is_refused(folders: dict[str, Path], index: PassageIndex, chunk_size: int):
    with pytest.raises(UsageError, match=f"chunk size {chunk_size} was asked for, but the states are stored at 4"):
        index.rerank(QUERIES[0], IDS, chunk_size=chunk_size)
    with pytest.raises(IndexMismatchError, match=rf"chunk size 4, {chunk_size} was asked for and is no multiple of it"):
        PassageIndex.open(folders["fp16"], chunk_size=chunk_size)


def test_reranking_orders_ids_by_their_margins(index: PassageIndex):
    margins = dict(zip(IDS, index.margins(QUERIES[0], IDS), strict=True))
    answer = index.rerank(QUERIES[0], IDS, top_n=5)
    assert [result.doc_id for result in answer.results] == sorted(IDS, key=lambda one: -margins[one])[:5]
    assert [result.rank for result in answer.results] == [1, 2, 3, 4, 5]
    for result in answer.results:
        assert result.margin == pytest.approx(margins[result.doc_id], abs=1e-4)
        assert result.score == score_of(result.margin)
        assert result.text == TEXTS[result.doc_id]
        assert (result.first_stage_rank, result.first_stage_score) == (None, None)


def test_reranking_no_ids_gives_no_results_and_repeated_ids_repeat(index: PassageIndex):
    assert index.rerank(QUERIES[0], []).results == []
    twice = index.rerank(QUERIES[0], ["d1", "d1"]).results
    assert [result.doc_id for result in twice] == ["d1", "d1"]


@pytest.mark.parametrize("mode", ["dense", "bm25", "fused", None])
def test_searching_reranks_the_candidates_of_the_first_stage(index: PassageIndex, mode):
    query = "gravity attracts bodies"
    answer = index.search(query, k=6, top_n=4, first_stage=mode)
    candidates = index.first_stage.search(query, 6, mode or "fused")
    ids = index.store.doc_ids(candidates.ordinals.tolist())
    expected = index.rerank(query, ids, top_n=4)
    assert [result.doc_id for result in answer.results] == [result.doc_id for result in expected.results]
    for result in answer.results:
        assert ids[result.first_stage_rank - 1] == result.doc_id
        assert result.first_stage_score == pytest.approx(float(candidates.scores[result.first_stage_rank - 1]))


def test_every_candidate_is_returned_when_no_number_of_results_is_given(index: PassageIndex):
    assert len(index.search("Gravity attracts bodies", k=12, top_n=None, first_stage="dense").results) == 12


def test_a_query_that_finds_nothing_has_no_results(index: PassageIndex):
    assert index.search("zzz", first_stage="bm25").results == []


def test_timings_and_the_query_stand_in_every_answer(index: PassageIndex):
    searched, reranked = index.search(QUERIES[1]), index.rerank(QUERIES[1], IDS)
    assert list(searched.timings_ms) == ["first_stage", "read", "decode", "total"]
    assert list(reranked.timings_ms) == ["read", "decode", "total"]
    for answer in (searched, reranked):
        *parts, total = answer.timings_ms.values()
        assert all(part >= 0 for part in parts)
        assert total >= sum(parts)
        assert (answer.query, answer.query_truncated) == (QUERIES[1], False)


def test_a_query_that_is_cut_is_reported(folders: dict[str, Path]):
    with PassageIndex.open(folders["fp16"], device="cpu", query_max_length=2) as index:
        assert index.rerank("a query of many tokens", ["d1"]).query_truncated


def test_instructions_change_the_margins(index: PassageIndex):
    plain = index.margins(QUERIES[0], IDS)
    assert index.margins(QUERIES[0], IDS, instruction="Find bees.") != plain
    assert index.margins(QUERIES[0], IDS, system_instruction="Answer.") != plain


def test_texts_are_left_out_when_not_asked_for(index: PassageIndex):
    assert {result.text for result in index.rerank(QUERIES[0], IDS, with_text=False).results} == {None}


def test_an_index_without_texts_answers_with_text_none(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, store_text=False), TEXTS)
    with PassageIndex.open(tmp_path / "index", device="cpu") as index:
        assert {result.text for result in index.search("Gravity attracts", first_stage="dense").results} == {None}


def test_an_index_of_no_passages_opens_and_finds_nothing(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder), {})
    with PassageIndex.open(tmp_path / "index", device="cpu") as index:
        assert len(index) == 0
        for mode in ("dense", "bm25", "fused"):
            assert index.search("Gravity", first_stage=mode).results == []


def test_unknown_ids_are_named(index: PassageIndex):
    with pytest.raises(UnknownIdError, match="3 of the ids are not in the index: 'nope', '', 'd99'") as raised:
        index.rerank(QUERIES[0], ["d1", "nope", "", "d2", "d99"])
    assert raised.value.ids == ["nope", "", "d99"]


@pytest.mark.parametrize("ordinals", [{"k": 0}, {"top_n": 0}, {"k": -1}])
def test_counts_below_one_are_refused(index: PassageIndex, ordinals: dict[str, int]):
    [(name, value)] = ordinals.items()
    with pytest.raises(UsageError, match=f"{name} is {value}; it must be a whole number, 1 or more"):
        index.search(QUERIES[0], **ordinals)


def test_an_index_opens_twice_in_one_process_and_each_closes_alone(copied: Path):
    first = PassageIndex.open(copied, device="cpu")
    second = PassageIndex.open(copied, device="cpu")
    expected = first.margins(QUERIES[0], IDS)
    first.close()
    assert second.margins(QUERIES[0], IDS) == expected
    second.close()
    with pytest.raises(StoreError):
        second.margins(QUERIES[0], IDS)


def test_several_threads_get_the_answers_of_one(index: PassageIndex):
    def ask(query: str) -> list[tuple[str, float]]:
        return [(result.doc_id, result.margin) for result in index.search(query, k=5).results]

    queries = [text[:30] for text in TEXTS.values()]
    alone = [ask(query) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, queries * 2)) == alone * 2


def test_what_is_hidden_is_in_no_answer_and_what_replaced_it_is(copied: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder)
    encoders = load_encoders(settings)
    nothing = {"on_reject": lambda line: None, "on_progress": lambda progress: None}
    add_passages(lines_of({"d1": "the rarewordx alone", "n": "a new one"}), copied, settings, encoders, **nothing)
    delete_passages(["d2"], copied)
    with PassageIndex.open(copied, device="cpu") as index:
        assert len(index) == 12
        assert index.search("rarewordx", first_stage="bm25").results[0].text == "the rarewordx alone"
        assert {one.doc_id for one in index.search(TEXTS["d2"], k=50, top_n=None).results} <= {*TEXTS, "n"} - {"d2"}
        with pytest.raises(UnknownIdError, match="'d2'"):
            index.rerank("ferry", ["d2"])
        assert index.rerank("ferry", ["d1"]).results[0].text == "the rarewordx alone"
