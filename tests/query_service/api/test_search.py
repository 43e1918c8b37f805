from __future__ import annotations

from dataclasses import asdict

import httpx
import pytest
import torch

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.settings import FIRST_STAGE_WEIGHTS
from tests.query_service.conftest import CORPUS

QUERY = "When does the ferry to the island leave?"


def search(client: httpx.Client, **request: object) -> dict:
    response = client.post("/search", json={"query": QUERY, **request})
    assert response.status_code == 200, response.text
    return response.json()


def close_to(results: list[dict]) -> list[dict]:
    numbers = ("score", "margin", "first_stage_score")
    return [result | {name: pytest.approx(result[name], abs=1e-5) for name in numbers} for result in results]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 5, "top_n": 3},
        {"first_stage": "dense", "k": 4},
        {"first_stage": "bm25"},
        {"first_stage_weight": 2.5},
        {"chunk_size": 16},
        {"instruction": "Find what contradicts the query."},
        {"instruction": ""},
    ],
)
def test_answers_are_those_of_the_index_in_process(
    service: httpx.Client, index: PassageIndex, options: dict[str, object]
) -> None:
    expected = index.search(QUERY, **options)
    answer = search(service, **options)
    assert answer["results"] == close_to([asdict(result) for result in expected.results])
    assert (answer["query"], answer["query_truncated"]) == (QUERY, False)
    assert answer["index_version"] == index.generation.manifest.generation == "000001"
    assert answer["timings_ms"].keys() == {"queue", "first_stage", "read", "decode", "total"}


def test_the_weight_of_the_first_stage_is_the_models_own_unless_the_request_says_otherwise(
    service: httpx.Client, index: PassageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FIRST_STAGE_WEIGHTS, index.generation.manifest.model, 2.5)
    for options, weight in (({}, 2.5), ({"first_stage_weight": 0}, 0.0)):
        expected = index.search(QUERY, first_stage_weight=weight)
        assert search(service, **options)["results"] == close_to([asdict(result) for result in expected.results])


def test_k_is_100_and_top_n_10_unless_the_request_says_otherwise(service: httpx.Client) -> None:
    assert len(CORPUS) == 18
    assert len(search(service, first_stage="dense", query="island")["results"]) == 10
    assert len(search(service, first_stage="dense", query="island", top_n=0)["results"]) > 10


def test_texts_come_unless_they_are_not_wanted(service: httpx.Client) -> None:
    with_texts, without = search(service)["results"], search(service, return_documents=False)["results"]
    assert len(with_texts) == len(without) == 10
    assert [result["text"] for result in with_texts] == [CORPUS[result["doc_id"]] for result in with_texts]
    assert {result["text"] for result in without} == {None}


def test_an_empty_query_finds_nothing_by_words(service: httpx.Client) -> None:
    assert search(service, query="", first_stage="bm25")["results"] == []


def test_a_query_of_more_tokens_than_count_is_said_to_be_truncated(service: httpx.Client) -> None:
    assert search(service, query="bees " * 600, k=1)["query_truncated"]


def test_requests_without_an_instruction_get_the_services(decoder_only: httpx.Client, index: PassageIndex) -> None:
    expected = index.search(QUERY, instruction="Find the passage.").results[0]
    assert search(decoder_only)["results"][0]["margin"] == pytest.approx(expected.margin, abs=1e-5)


def test_top_n_of_0_gives_all_candidates(service: httpx.Client, index: PassageIndex) -> None:
    assert len(search(service, top_n=0)["results"]) == len(index.search(QUERY, top_n=None).results)


def test_requests_without_top_n_get_the_services(decoder_only: httpx.Client) -> None:
    assert len(search(decoder_only)["results"]) == 2
    assert len(search(decoder_only, top_n=3)["results"]) == 3


def test_a_dense_search_leaves_torch_its_threads(index: PassageIndex) -> None:
    before = torch.get_num_threads()
    index.search(QUERY, first_stage="dense")
    assert torch.get_num_threads() == before
