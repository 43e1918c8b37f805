"""Damaged records and texts of an open index cost their passages, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache import PassageIndex
from kalm_cache.errors import (
    DamagedRecordError,
)
from tests.index.asked import IDS, QUERIES
from tests.indexes import TEXTS, seal_again, shard_of
from tests.stores import change_contents, damage_record, damage_text


def test_a_damaged_record_is_left_out_of_answers_named_and_counted(copied: Path):
    damage_record(shard_of(copied), "d3")
    damage_record(shard_of(copied), "d5")
    with PassageIndex.open(copied, device="cpu") as index:
        whole = [one for one in IDS if one not in ("d3", "d5")]
        reranked = index.rerank(QUERIES[0], IDS)
        assert {result.doc_id for result in reranked.results} == set(whole)
        assert reranked.damaged == ["d3", "d5"]
        assert index.damaged_reads == 2
        searched = index.search("Gravity attracts", k=12, top_n=None, first_stage="dense")
        assert {result.doc_id for result in searched.results} == set(whole)
        assert set(searched.damaged) == {"d3", "d5"}
        ranks = {result.doc_id: result.first_stage_rank for result in searched.results}
        assert len(set(ranks.values())) == 10
        assert max(ranks.values()) <= 12
        assert index.rerank(QUERIES[0], whole).damaged == []
        assert [one.margin for one in index.rerank(QUERIES[0], whole).results] == pytest.approx(
            [one.margin for one in reranked.results], abs=1e-5
        )


def test_damage_is_an_error_where_every_passage_must_have_an_answer(copied: Path):
    damage_record(shard_of(copied), "d3")
    with PassageIndex.open(copied, device="cpu") as index:
        for call in (lambda: index.margins(QUERIES[0], ["d1", "d3"]), lambda: index.pooled(["d3"])):
            with pytest.raises(DamagedRecordError, match="record 'd3': checksum mismatch; run kalm-cache verify"):
                call()
        assert len(index.margins(QUERIES[0], ["d1", "d2"])) == 2


def test_with_a_prefix_cache_damaged_records_are_left_out_too(copied: Path):
    damage_record(shard_of(copied), "d3")
    with PassageIndex.open(copied, device="cpu", prefix_cache_gib=0.01) as index:
        for _ in range(2):  # read, and then cached
            answer = index.rerank(QUERIES[0], IDS)
            assert answer.damaged == ["d3"]
            assert len(answer.results) == 11


def test_a_damaged_text_costs_the_result_its_text_alone(copied: Path):
    damage_text(shard_of(copied), "d3")
    with PassageIndex.open(copied, device="cpu") as index:
        answer = index.rerank(QUERIES[0], ["d1", "d3"])
        assert {result.doc_id: result.text for result in answer.results} == {"d1": TEXTS["d1"], "d3": None}
        assert answer.damaged == ["d3"]
        assert index.rerank(QUERIES[0], ["d1", "d3"], with_text=False).damaged == []


def test_records_of_another_codec_are_damage(copied: Path):
    change_contents(shard_of(copied), lambda contents: contents.set_record("d1", codec=6))
    seal_again(copied)
    with PassageIndex.open(copied, device="cpu") as index:
        with pytest.raises(DamagedRecordError, match=r"record 'd1': codec 6, the manifest says fp16"):
            index.pooled(["d1"])
        assert index.rerank(QUERIES[0], ["d1", "d2"]).damaged == ["d1"]
