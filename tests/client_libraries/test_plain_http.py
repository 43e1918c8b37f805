"""What other services document, as plain requests: for clients in other languages, and those that are not installed."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.client_libraries.conftest import QUERY, TEXTS


def post(service: httpx.Client, path: str, **body: Any) -> Any:
    response = service.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def pairs(results: list[dict[str, Any]], score: str = "relevance_score") -> list[tuple[int, float]]:
    return [(one["index"], one[score]) for one in results]


@pytest.fixture
def expected(order: list[int], scores: list[object]) -> list[tuple[int, object]]:
    return list(zip(order, scores, strict=True))


def test_cohere_version_2(service: httpx.Client, model: str, expected: list[tuple[int, object]]) -> None:
    answer = post(service, "/v2/rerank", model=model, query=QUERY, documents=TEXTS, top_n=2, max_tokens_per_doc=4096)
    assert pairs(answer["results"]) == expected[:2]
    assert {"id", "results", "meta"} <= answer.keys()


def test_jina(service: httpx.Client, model: str, expected: list[tuple[int, object]]) -> None:
    answer = post(
        service,
        "/v1/rerank",
        model=model,
        query=QUERY,
        documents=[{"text": one} for one in TEXTS],
        return_documents=True,
    )
    assert pairs(answer["results"]) == expected
    assert [one["document"] for one in answer["results"]] == [{"text": TEXTS[i]} for i, _ in expected]
    assert {"prompt_tokens", "total_tokens"} <= answer["usage"].keys()


def test_text_embeddings_inference(
    service: httpx.Client, expected: list[tuple[int, object]], order: list[int], margins: list[object]
) -> None:
    answer = post(service, "/rerank", query=QUERY, texts=TEXTS, truncate=True, truncation_direction="Right")
    assert pairs(answer, "score") == expected
    assert answer[0].keys() == {"index", "score"}
    raw = post(service, "/rerank", query=QUERY, texts=TEXTS, raw_scores=True, return_text=True)
    assert pairs(raw, "score") == list(zip(order, margins, strict=True))
    assert [one["text"] for one in raw] == [TEXTS[i] for i in order]
    assert {"model_id", "max_input_length", "max_client_batch_size"} <= service.get("/info").json().keys()


def test_infinity(service: httpx.Client, model: str, expected: list[tuple[int, object]]) -> None:
    body = {"model": model, "query": QUERY, "documents": TEXTS, "return_documents": True, "raw_scores": False}
    answer = post(service, "/infinity/rerank", **body, top_n=None)
    assert (answer["object"], answer["model"]) == ("rerank", model)
    assert pairs(answer["results"]) == expected
    assert [one["document"] for one in answer["results"]] == [TEXTS[i] for i, _ in expected]  # strings
    assert isinstance(answer["created"], int)
    assert {"prompt_tokens", "total_tokens"} <= answer["usage"].keys()
    silent = post(service, "/infinity/rerank", **{**body, "return_documents": False})
    assert [one.get("document") for one in silent["results"]] == [None] * len(TEXTS)


def test_vllm_rerank(service: httpx.Client, model: str, expected: list[tuple[int, object]]) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = {"model": model, "query": QUERY, "documents": TEXTS, "top_n": 0, "truncate_prompt_tokens": -1}
        answer = post(service, path, **body, return_documents=True)
        assert pairs(answer["results"]) == expected
        assert answer["results"][0]["document"]["text"] == TEXTS[expected[0][0]]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(("left", "right"), [("text_1", "text_2"), ("queries", "documents")])
def test_vllm_score(
    service: httpx.Client, model: str, path: str, left: str, right: str, expected: list[tuple[int, object]]
) -> None:
    answer = post(service, path, model=model, **{left: QUERY, right: TEXTS})
    assert answer["object"] == "list"
    assert {one["object"] for one in answer["data"]} == {"score"}
    assert pairs(answer["data"], "score") == sorted(expected)
    same = post(service, path, model=model, **{left: [QUERY] * len(TEXTS), right: TEXTS})
    assert pairs(same["data"], "score") == sorted(expected)


def test_the_kalm_adapter(
    service: httpx.Client, expected: list[tuple[int, object]], order: list[int], margins: list[object]
) -> None:
    ranked = post(service, "/rerank", query=QUERY, documents=TEXTS, top_k=2, return_margin=True)
    assert pairs(ranked["results"], "score") == expected[:2]
    assert pairs(ranked["results"], "margin") == list(zip(order, margins, strict=True))[:2]
    asked = [{"id": f"pair {i}", "query": QUERY, "document": text} for i, text in enumerate(TEXTS)]
    scored = post(service, "/score", pairs=asked)
    assert pairs(scored["results"], "score") == sorted(expected)
    assert [one["id"] for one in scored["results"]] == [one["id"] for one in asked]


def test_models_are_listed_as_by_openai(service: httpx.Client, model: str) -> None:
    for path in ("/v1/models", "/infinity/models"):
        answer = service.get(path).json()
        assert answer["object"] == "list"
        [entry] = [one for one in answer["data"] if one["id"] == model]
        assert (entry["object"], isinstance(entry["created"], int)) == ("model", True)


def test_fields_that_are_null_are_fields_that_are_not_given(
    service: httpx.Client, expected: list[tuple[int, object]]
) -> None:
    names = ("model", "top_n", "top_k", "max_tokens_per_doc", "return_documents", "return_text", "raw_scores")
    answer = post(service, "/rerank", query=QUERY, documents=TEXTS, **dict.fromkeys(names))
    assert pairs(answer["results"]) == expected


def test_failures_carry_a_detail_for_clients_that_read_it(service: httpx.Client) -> None:
    response = service.post("/v1/rerank", json={"query": QUERY, "documents": TEXTS, "top_n": -1})
    assert response.status_code == 422
    assert response.json()["detail"] == response.json()["error"]["message"]
