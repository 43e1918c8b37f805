from __future__ import annotations

import httpx
import pytest

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import Prompt
from kalm_cache.reranker import KaLMReranker
from tests.query_service.conftest import CORPUS

QUERIES = ["Where do bees dance?", "What is the capital of China?", ""]
DOCUMENTS = [CORPUS["s5"], CORPUS["s0"], CORPUS["l9"]]


def score(client: httpx.Client, path: str = "/score", **request: object) -> dict:
    response = client.post(path, json={"cache": False} | request)  # texts of the corpus are encoded, too
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_of_raw_and_stored_passages_keep_their_order_and_labels(
    service: httpx.Client, index: PassageIndex, reranker: KaLMReranker, path: str
) -> None:
    pairs = [
        {"label": "a", "query": QUERIES[0], "document": DOCUMENTS[0]},
        {"label": 2, "query": QUERIES[1], "doc_id": "s5"},
        {"query": QUERIES[1], "document": {"text": DOCUMENTS[2]}},
        {"id": "d", "query": QUERIES[0], "doc_id": "s5"},
    ]
    answer = score(service, path, pairs=pairs, return_margin=True)
    raw = reranker.predict([(QUERIES[0], DOCUMENTS[0]), (QUERIES[1], DOCUMENTS[2])], return_margin=True)
    stored = [index.margins(query, ["s5"])[0] for query in (QUERIES[1], QUERIES[0])]
    expected = [raw[0]["margin"], stored[0], raw[1]["margin"], stored[1]]
    assert answer["object"] == "score"
    assert [result["margin"] for result in answer["results"]] == pytest.approx(expected, abs=1e-5)
    names = [[result.get(name) for name in ("index", "label", "id", "doc_id")] for result in answer["results"]]
    assert names == [[0, "a", None, None], [1, 2, None, "s5"], [2, None, None, None], [3, "d", "d", "s5"]]
    assert all(0 < result["score"] < 1 for result in answer["results"])


def test_missing_passages_may_be_skipped_and_are_named(service: httpx.Client) -> None:
    pairs = [{"query": "bees", "doc_id": doc_id} for doc_id in ("s1", "gone", "s2")]
    answer = score(service, pairs=pairs, on_missing="skip")
    assert [(one["index"], one["doc_id"]) for one in answer["results"]] == [(0, "s1"), (2, "s2")]
    assert answer["meta"]["missing"] == ["gone"]
    documents = [{"text": "x", "doc_id": "gone"}, "a text"]
    columns = score(service, queries="bees", documents=documents, on_missing="skip")
    assert ([one["index"] for one in columns["data"]], columns["meta"]["missing"]) == ([1], ["gone"])


@pytest.mark.parametrize(
    ("left", "right"), [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")]
)
def test_two_columns_are_scored_line_by_line(
    service: httpx.Client, reranker: KaLMReranker, left: str, right: str
) -> None:
    answer = score(service, **{left: QUERIES, right: DOCUMENTS})
    expected = reranker.predict(list(zip(QUERIES, DOCUMENTS, strict=True)))
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage", "meta"}
    assert answer["object"] == "list"
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert [(entry["index"], entry["object"]) for entry in answer["data"]] == [(i, "score") for i in range(3)]


@pytest.mark.parametrize("query", [QUERIES[0], QUERIES[:1], ""])
def test_one_query_is_scored_against_every_document(
    service: httpx.Client, reranker: KaLMReranker, query: str | list[str]
) -> None:
    text = query if isinstance(query, str) else query[0]
    answer = score(service, queries=query, documents=DOCUMENTS, raw_scores=True, return_margin=True)
    expected = [entry["margin"] for entry in reranker.predict([(text, d) for d in DOCUMENTS], return_margin=True)]
    assert [entry["score"] for entry in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert [entry["margin"] for entry in answer["data"]] == [entry["score"] for entry in answer["data"]]


def test_one_text_against_one_text_is_one_score(service: httpx.Client, reranker: KaLMReranker) -> None:
    [entry] = score(service, text_1=QUERIES[0], text_2=DOCUMENTS[0], model="default/not-specified")["data"]
    assert entry["score"] == pytest.approx(reranker.predict([(QUERIES[0], DOCUMENTS[0])])[0], abs=1e-5)


def test_usage_counts_the_prompt_of_every_pair(service: httpx.Client, reranker: KaLMReranker) -> None:
    prompts = [
        reranker.query_side.tokenize(Prompt(q, reranker.instruction, reranker.system_instruction)) for q in QUERIES
    ]
    passages = reranker.passage_side.tokenize(DOCUMENTS)
    usage = score(service, queries=QUERIES, documents=DOCUMENTS)["usage"]
    assert usage["prompt_tokens"] - usage["passage_tokens"] == sum(len(tokens.ids) for tokens in prompts)
    assert usage["passage_tokens"] == sum(len(tokens.ids) for tokens in passages)


def test_nothing_to_score_is_an_empty_answer(service: httpx.Client) -> None:
    assert score(service, pairs=[])["results"] == []
