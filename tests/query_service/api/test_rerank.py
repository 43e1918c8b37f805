from __future__ import annotations

import httpx
import pytest

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import Prompt
from kalm_cache.reranker import KaLMReranker
from kalm_cache.scoring.query_side import score_of
from tests.query_service.conftest import CORPUS, MAX_LENGTH

QUERY = "Where do honey bees dance?"
IDS = ["s5", "l9", "s0", "empty", "ü/北", "l3", "s5"]
TEXTS = [CORPUS[doc_id] for doc_id in IDS]


def rerank(client: httpx.Client, path: str = "/rerank", **request: object) -> dict:
    response = client.post(path, json={"query": QUERY, **request})
    assert response.status_code == 200, response.text
    return response.json()


def ranking(margins: list[float]) -> list[int]:
    return sorted(range(len(margins)), key=lambda i: -margins[i])


def indexes(answer: dict) -> list[int]:
    return [result["index"] for result in answer["results"]]


@pytest.mark.parametrize("options", [{}, {"chunk_size": 8}, {"instruction": "Find what is untrue."}])
def test_ids_score_as_the_index_in_process(
    service: httpx.Client, index: PassageIndex, options: dict[str, object]
) -> None:
    margins = index.margins(QUERY, IDS, **options)
    results = rerank(service, ids=IDS, return_margin=True, **options)["results"]
    assert [(result["index"], result["doc_id"]) for result in results] == [(i, IDS[i]) for i in ranking(margins)]
    for result in results:
        assert result["margin"] == pytest.approx(margins[result["index"]], abs=1e-5)
        assert result["score"] == result["relevance_score"] == pytest.approx(score_of(result["margin"]))


@pytest.mark.parametrize("options", [{}, {"instruction": "Find what is untrue."}])
def test_documents_score_as_the_reference_interface(
    service: httpx.Client, reranker: KaLMReranker, options: dict[str, str]
) -> None:
    expected = reranker.rank(QUERY, TEXTS, return_margin=True, **options)
    results = rerank(service, documents=TEXTS, return_margin=True, cache=False, **options)["results"]
    assert [result["index"] for result in results] == [entry["corpus_id"] for entry in expected]
    assert [result["margin"] for result in results] == pytest.approx([entry["margin"] for entry in expected], abs=1e-5)


def test_documents_may_be_pooled_at_any_ratio(service: httpx.Client, mini_folder: object) -> None:
    coarse = KaLMReranker(str(mini_folder), device="cpu", max_length=MAX_LENGTH, chunk_size=3)
    expected = coarse.predict([(QUERY, TEXTS[1])], return_margin=True)[0]["margin"]
    [result] = rerank(service, documents=[TEXTS[1]], chunk_size=3, raw_scores=True)["results"]
    assert result["score"] == pytest.approx(expected, abs=1e-5)


def test_the_envelope_has_what_the_clients_of_all_services_read(service: httpx.Client) -> None:
    answer = rerank(service, ids=["s5", "s0"], model="", truncate=True, max_tokens_per_doc=512)
    assert answer.keys() == {"id", "object", "created", "model", "results", "usage", "meta"}
    assert answer["object"] == "rerank"
    assert answer["id"] != rerank(service, ids=["s5"])["id"]
    assert "/" not in answer["model"]
    timings = answer["meta"].pop("timings_ms")
    assert timings.keys() == {"queue", "read", "decode", "total"}
    assert answer["meta"] == {
        "index_version": "000001",
        "query_truncated": False,
        "truncated": [],
        "missing": [],
        "damaged": [],
        "unused_fields": [],
        "cache_sources": {"index_id": 2},
    }
    assert {*map(frozenset, answer["results"])} == {frozenset({"index", "relevance_score", "score", "doc_id", "cache"})}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_every_path_gives_the_same_answer(service: httpx.Client, path: str) -> None:
    silent = {"return_documents": False}
    results = [rerank(service, one, documents=TEXTS, **silent)["results"] for one in (path, "/rerank")]
    assert results[0] == results[1] == rerank(service, path, documents=TEXTS)["results"]
    assert {*map(frozenset, results[0])} == {frozenset({"index", "relevance_score", "score", "cache"})}


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ({"top_n": 2}, 2),
        ({"top_k": 3}, 3),
        ({"top_n": 1, "top_k": 5}, 1),
        ({"top_n": 0}, 7),
        ({"top_n": None}, 7),
        ({"top_n": 99}, 7),
        ({"top_k": 0}, 7),
    ],
)
def test_the_best_n_come_and_0_null_or_too_many_mean_all(
    service: httpx.Client, limit: dict[str, int | None], count: int
) -> None:
    assert indexes(rerank(service, ids=IDS, **limit)) == indexes(rerank(service, ids=IDS))[:count]


def test_raw_scores_are_margins(service: httpx.Client, index: PassageIndex) -> None:
    result = rerank(service, ids=["s5"], raw_scores=True)["results"][0]
    assert result["score"] == result["relevance_score"] == pytest.approx(index.margins(QUERY, ["s5"])[0], abs=1e-5)


@pytest.mark.parametrize("wish", ["return_documents", "return_text"])
@pytest.mark.parametrize("source", [{"ids": IDS}, {"documents": TEXTS}])
def test_documents_come_back_when_asked_for(service: httpx.Client, source: dict[str, list[str]], wish: str) -> None:
    results = rerank(service, **source, **{wish: True}, top_n=3)["results"]
    assert [result["document"] for result in results] == [{"text": TEXTS[result["index"]]} for result in results]


@pytest.mark.parametrize("source", ["documents", "texts"])
def test_documents_keep_the_ids_that_they_came_with(service: httpx.Client, source: str) -> None:
    documents = [
        "no id",
        {"text": "a name", "id": "ü"},
        {"text": "a number", "id": 7, "title": "ignored"},
        {"text": "in the index's word", "doc_id": "n"},
        {"text": "in both", "doc_id": "n", "id": 8},
    ]
    answer = rerank(service, **{source: documents})
    results = answer if source == "texts" else answer["results"]
    assert {result["index"]: (result.get("doc_id"), result.get("id")) for result in results} == {
        0: (None, None),
        1: ("ü", "ü"),
        2: ("7", 7),
        3: ("n", None),
        4: ("n", 8),
    }


def test_a_stored_document_is_known_by_either_name_of_its_id(service: httpx.Client) -> None:
    documents = [{"text": CORPUS["s1"], name: "s1"} for name in ("doc_id", "id")]
    assert [result["cache"] for result in rerank(service, documents=documents)["results"]] == ["hit", "hit"]


def test_texts_are_answered_by_a_bare_array(service: httpx.Client) -> None:
    envelope = rerank(service, documents=TEXTS)
    bare = rerank(service, texts=TEXTS)
    assert bare == [{"index": result["index"], "score": result["score"]} for result in envelope["results"]]
    [best] = rerank(service, texts=TEXTS, return_text=True, raw_scores=True, top_n=1)
    assert best.keys() == {"index", "score", "text"}
    assert best["text"] == TEXTS[best["index"]]


def test_usage_counts_real_tokens(service: httpx.Client, reranker: KaLMReranker) -> None:
    prompt = reranker.query_side.tokenize(Prompt(QUERY, reranker.instruction, reranker.system_instruction))
    passages = sum(len(tokens.ids) for tokens in reranker.passage_side.tokenize(TEXTS))
    total = len(prompt.ids) * len(IDS) + passages
    expected = {"prompt_tokens": total, "passage_tokens": passages, "total_tokens": total}
    assert rerank(service, ids=IDS)["usage"] == expected
    assert rerank(service, documents=TEXTS)["usage"] == expected


@pytest.mark.parametrize("source", ["ids", "documents"])
def test_nothing_to_rank_is_an_empty_answer(service: httpx.Client, source: str) -> None:
    answer = rerank(service, **{source: []})
    assert (answer["results"], answer["usage"]["total_tokens"]) == ([], 0)
    assert rerank(service, "/v1/rerank", **{source: []})["results"] == []


def test_an_empty_query_is_ranked(service: httpx.Client, index: PassageIndex) -> None:
    result = rerank(service, query="", ids=["s1"], return_margin=True)["results"][0]
    assert result["margin"] == pytest.approx(index.margins("", ["s1"])[0], abs=1e-5)
