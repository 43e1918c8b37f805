from __future__ import annotations

import json
from typing import Any

import pytest

from kalm_cache.client import PairScore, ServedPlan, calls
from kalm_cache.client.reply import Reply
from kalm_cache.errors import KalmCacheError, ServiceError, UsageError

HIT = {
    "doc_id": "d1",
    "score": 0.9,
    "margin": 2.2,
    "rank": 1,
    "first_stage_rank": 3,
    "first_stage_score": 0.5,
    "text": "a text",
}
SEARCHED = {
    "query": "q",
    "query_truncated": False,
    "results": [HIT],
    "timings_ms": {"total": 1.5},
    "index_version": "000002",
}
RANKED = {
    "results": [
        {"index": 1, "relevance_score": 0.9, "score": 0.9, "margin": 2.2, "id": "b", "cache": "hit"},
        {"index": 0, "relevance_score": 0.1, "score": 0.1, "margin": -2.2, "cache": "encoded"},
    ],
    "meta": {"index_version": "000002", "query_truncated": True, "missing": ["z"], "truncated": [0], "damaged": []},
}


def reply(body: Any, status: int = 200) -> Reply:
    return Reply(status, json.dumps(body).encode(), "http://service/path")


def test_a_search_sends_what_an_index_has_as_defaults() -> None:
    call = calls.search("q", {})
    assert (call.method, call.path) == ("POST", "/search")
    assert call.body == {"query": "q", "k": 100, "top_n": 10, "return_documents": True}


def test_a_search_for_all_candidates_says_so_to_the_service_whose_null_means_its_own_default() -> None:
    assert calls.search("q", {"top_n": None}).body["top_n"] == 0  # type: ignore[index]


@pytest.mark.parametrize("options", [{"k": 0}, {"top_n": 0}])
def test_a_search_for_nothing_is_a_usage_error_as_in_process(options: Any) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        calls.search("q", options)


def test_a_search_answer_is_that_of_an_index_with_what_the_service_adds() -> None:
    plan = {"k": 20, "chunk_size": 8, "predicted_ms": 9.5, "reduced": True, "new_field": 1}
    answer = calls.search("q", {}).finish(reply({**SEARCHED, "plan": plan, "new_field": 1}))
    [result] = answer.results
    assert (result.doc_id, result.margin, result.first_stage_rank, result.text) == ("d1", 2.2, 3, "a text")
    assert (result.index, result.cache) == (None, None)
    assert (answer.index_version, answer.timings_ms, answer.damaged) == ("000002", {"total": 1.5}, [])
    assert answer.plan == ServedPlan(20, 8, 9.5, True)


def test_a_rerank_by_ids_sends_no_text() -> None:
    call = calls.rerank("q", ["a", "b"], None, {"top_n": 1, "on_missing": "skip"})
    assert call.body == {
        "query": "q",
        "ids": ["a", "b"],
        "return_margin": True,
        "return_documents": True,
        "top_n": 1,
        "on_missing": "skip",
    }


def test_a_rerank_answer_names_documents_without_an_id_by_their_position() -> None:
    call = calls.rerank("q", None, ["first", {"text": "second", "id": "b"}], {})
    assert call.body["return_documents"] is False  # type: ignore[index]  # their texts are here already
    answer = call.finish(reply(RANKED))
    assert [(one.doc_id, one.index, one.rank, one.text, one.cache) for one in answer.results] == [
        ("b", 1, 1, "second", "hit"),
        ("0", 0, 2, "first", "encoded"),
    ]
    assert (answer.missing, answer.truncated, answer.query_truncated) == (["z"], [0], True)


def test_texts_are_left_out_of_a_rerank_answer_where_they_are_not_wanted() -> None:
    answer = calls.rerank("q", None, ["first", "second"], {"with_text": False}).finish(reply(RANKED))
    assert [one.text for one in answer.results] == [None, None]


@pytest.mark.parametrize(
    ("ids", "documents", "message"),
    [(None, None, "either ids or documents"), (["a"], ["b"], "either"), ("a", None, "one string"), (None, "b", "one")],
)
def test_a_rerank_without_one_source_is_a_usage_error(ids: Any, documents: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calls.rerank("q", ids, documents, {})


def test_pairs_go_out_in_batches_and_name_stored_passages_by_id() -> None:
    pairs: list[Any] = [
        ("q", "text"),
        ("q", {"id": "d1"}),
        {"id": 7, "query": "q", "doc_id": "d2"},
        ("q", {"text": "t"}),
    ]
    bodies = [call.body for call in calls.score(pairs, {"batch_size": 3, "instruction": "Find."})]
    assert bodies == [
        {
            "pairs": [
                {"query": "q", "document": "text"},
                {"query": "q", "doc_id": "d1"},
                {"id": 7, "query": "q", "doc_id": "d2"},
            ],
            "return_margin": True,
            "instruction": "Find.",
        },
        {"pairs": [{"query": "q", "document": {"text": "t"}}], "return_margin": True, "instruction": "Find."},
    ]


@pytest.mark.parametrize("pair", ["ab", ("q",), ("q", "d", "x"), (1, "d"), None])
def test_what_is_no_pair_is_named_by_its_position(pair: Any) -> None:
    with pytest.raises(UsageError, match=r"pairs\[1\] is"):
        list(calls.score([("q", "d"), pair], {}))


def test_scores_keep_the_names_of_their_pairs() -> None:
    [call] = calls.score([("q", "d")], {})
    assert call.finish(reply({"results": [{"index": 0, "id": 7, "score": 0.9, "margin": 2.2}]})) == [
        PairScore(0.9, 2.2, 7)
    ]


def test_an_answer_with_another_number_of_scores_is_refused() -> None:
    [call] = calls.score([("q", "d")], {})
    with pytest.raises(ServiceError, match="no answer of a kalm-cache service"):
        call.finish(reply({"results": []}))


@pytest.mark.parametrize("body", [[], {}, {"results": [{}]}, {**SEARCHED, "results": 1}, None, "text"])
def test_a_body_that_is_no_answer_is_a_service_error_that_shows_it(body: Any) -> None:
    with pytest.raises(ServiceError, match=r"http://service/path.*|is base_url right"):
        calls.search("q", {}).finish(reply(body))


def test_a_body_that_is_no_json_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match="<html>"):
        calls.health().finish(Reply(200, b"<html>", "http://service/"))


@pytest.mark.parametrize("query", ["half \ud83d", float("nan"), object()])
def test_a_request_that_no_json_can_hold_is_a_usage_error(query: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        _ = calls.search(query, {}).content


def test_scores_are_ranked_as_the_reranker_ranks_them() -> None:
    scores = [PairScore(0.5, 0.0), PairScore(0.9, 2.2), PairScore(0.5, 0.0)]
    assert calls.ranked(scores, None, False) == [
        {"corpus_id": 1, "score": 0.9},
        {"corpus_id": 0, "score": 0.5},
        {"corpus_id": 2, "score": 0.5},
    ]
    assert calls.ranked(scores, 1, True) == [{"corpus_id": 1, "score": 0.9, "margin": 2.2}]
    assert calls.predicted(scores[:1], True) == [{"score": 0.5, "margin": 0.0}]
    with pytest.raises(UsageError, match="top_k is -1"):
        calls.ranked(scores, -1, False)


def test_failures_of_a_call_are_the_projects_own() -> None:
    with pytest.raises(KalmCacheError):
        calls.models().finish(reply({"error": {"type": "x", "message": "y"}}, 500))
