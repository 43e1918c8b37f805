from __future__ import annotations

from typing import Any

import httpx
import pytest

from kalm_cache.client import Explanation, PairScore, ServedPlan, calls
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


EXPLAINED = {
    "score": 0.9,
    "margin": 2.2,
    "chunk_size": 4,
    "query_truncated": False,
    "truncated": False,
    "text": "a text",
    "chunks": [{"start": 0, "end": 6, "weight": 1.0, "tokens": 2}],
    "index_version": "000002",
}


def reply(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body, request=httpx.Request("POST", "http://service/path"))


def test_a_search_sends_what_an_index_has_as_defaults() -> None:
    call = calls.search("q", {})
    assert (call.method, call.path) == ("POST", "/search")
    assert call.body == {"query": "q", "k": 100, "top_n": 10, "return_documents": True}


def test_a_search_for_all_candidates_says_so_to_the_service_whose_null_means_its_own_default() -> None:
    assert calls.search("q", {"top_n": None}).body["top_n"] == 0  # type: ignore[index]


@pytest.mark.parametrize("options", [{"k": 0}, {"top_n": 0}])
def test_a_search_for_nothing_is_a_usage_error_as_in_process(options: Any) -> None:
    with pytest.raises(UsageError, match="it must be a whole number, 1 or more"):
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
    assert [(hit.doc_id, hit.index, hit.rank, hit.text, hit.cache) for hit in answer.results] == [
        ("b", 1, 1, "second", "hit"),
        ("0", 0, 2, "first", "encoded"),
    ]
    assert (answer.missing, answer.truncated, answer.query_truncated) == (["z"], [0], True)


def test_texts_are_left_out_of_a_rerank_answer_where_they_are_not_wanted() -> None:
    answer = calls.rerank("q", None, ["first", "second"], {"with_text": False}).finish(reply(RANKED))
    assert [hit.text for hit in answer.results] == [None, None]


@pytest.mark.parametrize("fields", [{"doc_id": "b"}, {"id": "b"}, {"doc_id": "b", "id": "b"}, {"doc_id": "b", "id": 7}])
def test_the_stored_id_is_read_from_services_of_either_age(fields: dict[str, Any]) -> None:
    result = {"index": 0, "score": 0.9, "margin": 2.2, **fields}
    [ranked] = calls.rerank("q", ["b"], None, {}).finish(reply({"results": [result]})).results
    assert ranked.doc_id == "b"
    explained = calls.explain("q", "b", {}).finish(reply({**EXPLAINED, **fields}))
    assert isinstance(explained, Explanation)
    assert (explained.doc_id, explained.chunks[0].end) == ("b", 6)


def test_an_explanation_without_an_id_is_no_answer() -> None:
    with pytest.raises(ServiceError, match="no answer of a kalm-cache service"):
        calls.explain("q", "b", {}).finish(reply(EXPLAINED))


def test_ids_are_sent_under_the_name_that_services_of_every_age_take() -> None:
    assert calls.explain("q", "b", {}).body == {"query": "q", "id": "b"}
    documents = calls.rerank("q", None, [{"text": "t", "doc_id": "b"}, {"text": "u", "id": "c"}], {}).body
    assert documents is not None
    assert documents["documents"] == [{"text": "t", "id": "b"}, {"text": "u", "id": "c"}]


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
        ("q", {"doc_id": "d3"}),
        {"label": "mine", "query": "q", "document": "text"},
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
        {
            "pairs": [
                {"query": "q", "document": {"text": "t"}},
                {"query": "q", "doc_id": "d3"},
                {"id": "mine", "query": "q", "document": "text"},
            ],
            "return_margin": True,
            "instruction": "Find.",
        },
    ]


@pytest.mark.parametrize("pair", ["ab", ("q",), ("q", "d", "x"), (1, "d"), None])
def test_what_is_no_pair_is_named_by_its_position(pair: Any) -> None:
    with pytest.raises(UsageError, match=r"pairs\[1\] is"):
        list(calls.score([("q", "d"), pair], {}))


@pytest.mark.parametrize("tag", [{"id": 7}, {"label": 7}, {"label": 7, "id": 7}])
def test_scores_keep_the_labels_of_their_pairs(tag: dict[str, int]) -> None:
    [call] = calls.score([("q", "d")], {})
    assert call.finish(reply({"results": [{"index": 0, "score": 0.9, "margin": 2.2, **tag}]})) == [
        PairScore(0.9, 2.2, label=7)
    ]


def test_an_answer_with_another_number_of_scores_is_refused() -> None:
    [call] = calls.score([("q", "d")], {})
    with pytest.raises(ServiceError, match="no answer of a kalm-cache service"):
        call.finish(reply({"results": []}))


@pytest.mark.parametrize("body", [[], {}, {"results": [{}]}, {**SEARCHED, "results": 1}, None, "text"])
def test_a_body_that_is_no_answer_is_a_service_error_that_shows_it(body: Any) -> None:
    with pytest.raises(ServiceError, match=r"is base_url right\? \(HTTP 200 from http://service/path\)"):
        calls.search("q", {}).finish(reply(body))


def test_a_body_that_is_no_json_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match="<html>"):
        calls.health().finish(httpx.Response(200, text="<html>", request=httpx.Request("GET", "http://service/")))


@pytest.mark.parametrize("instruction", ["half \ud83d", float("nan"), object()])
def test_a_request_that_no_json_can_hold_is_a_usage_error(instruction: Any) -> None:
    with pytest.raises(UsageError, match="cannot be written as JSON"):
        _ = calls.search("q", {"instruction": instruction}).content


@pytest.mark.parametrize("query", ["half \ud83d", float("nan"), object(), None, 7, ["q"]])
def test_a_query_that_is_no_text_is_a_usage_error_before_anything_is_sent(query: Any) -> None:
    for call in (
        lambda: calls.search(query, {}),
        lambda: calls.rerank(query, ["a"], None, {}),
        lambda: calls.explain(query, "a", {}),
        lambda: calls.pairs_of(query, ["a"]),
        lambda: calls.stored_pairs_of(query, ["a"]),
    ):
        with pytest.raises(UsageError, match=r"^query "):
            call()


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
