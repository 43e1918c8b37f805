"""What the own tests of vLLM, Text Embeddings Inference, Infinity and Cohere expect of a rerank server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalm_cache.reranker import KaLMReranker
from kalm_cache.scoring.query_side import score_of
from query_service.middleware.http.dialects import dialect_of
from tests.query_service.conftest import CORPUS, MAX_LENGTH, serving

QUERY = "Where do bees dance?"
TEXTS = [CORPUS["s5"], CORPUS["s0"], CORPUS["l9"]]
WORDS = ["bees", *(["flowers"] * 100), "hive"]
LONG = " ".join(WORDS)


def post(client: httpx.Client, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json={"query": QUERY, **body})
    assert response.status_code == status, response.text
    return response.json()


def values(answer: dict[str, Any]) -> list[float]:
    """Scores in the order of the request."""
    return [one["relevance_score"] for one in sorted(answer["results"], key=lambda one: one["index"])]


@pytest.mark.parametrize(
    ("path", "fields", "dialect"),
    [
        ("/rerank", {"query", "documents"}, "vllm"),
        ("/rerank", {"query", "documents", "return_margin"}, "kalm"),
        ("/rerank", {"query", "texts"}, "tei"),
        ("/rerank", {"query", "ids", "texts"}, "kalm"),
        ("/rerank", {"query"}, "kalm"),
        ("/v1/rerank", {"query", "documents"}, "cohere-1"),
        ("/v2/rerank", {"query", "documents", "top_n"}, "cohere-2"),
        ("/v2/rerank", {"query", "documents", "truncate_prompt_tokens"}, "vllm"),
        ("/v1/rerank", {"query", "ids"}, "kalm"),
        ("/infinity/rerank", {"query", "texts"}, "infinity"),
        ("/score", {"text_1", "text_2"}, "vllm"),
        ("/v1/score", {"pairs"}, "kalm"),
        ("/search", {"query"}, "kalm"),
    ],
)
def test_a_dialect_is_told_by_path_and_fields(path: str, fields: set[str], dialect: str) -> None:
    assert dialect_of(path, fields) == dialect


def test_vllm_hands_every_document_back_unless_told_not_to(service: httpx.Client) -> None:
    answer = post(service, "/rerank", documents=TEXTS)
    assert [one["document"] for one in answer["results"]] == [
        {"text": TEXTS[one["index"]]} for one in answer["results"]
    ]
    silent = post(service, "/rerank", documents=TEXTS, return_documents=False)
    others = [post(service, path, documents=TEXTS) for path in ("/v1/rerank", "/v2/rerank", "/infinity/rerank")]
    for one in (silent, *others, post(service, "/rerank", documents=TEXTS, return_margin=True)):
        assert not any("document" in result for result in one["results"])
    option = post(service, "/v1/rerank", documents=TEXTS, truncate_prompt_tokens=-1)
    assert all("document" in result for result in option["results"])


@pytest.mark.parametrize("name", ["use_activation", "activation"])
def test_vllm_scores_without_activation_are_margins(service: httpx.Client, name: str) -> None:
    plain = values(post(service, "/rerank", documents=TEXTS))
    margins = values(post(service, "/rerank", documents=TEXTS, **{name: False}))
    assert values(post(service, "/rerank", documents=TEXTS, **{name: True})) == pytest.approx(plain, abs=1e-6)
    assert [score_of(margin) for margin in margins] == pytest.approx(plain, abs=1e-6)
    assert margins == pytest.approx(values(post(service, "/rerank", documents=TEXTS, raw_scores=True)), abs=1e-5)
    scored = post(service, "/score", queries=QUERY, documents=TEXTS, **{name: False})["data"]
    assert [one["score"] for one in scored] == pytest.approx(margins, abs=1e-5)


@pytest.mark.parametrize(
    "wishes",
    [
        {"use_activation": True, "activation": False},
        {"raw_scores": True, "use_activation": True},
        {"truncation_side": "left", "truncation_direction": "Right"},
    ],
)
def test_wishes_that_contradict_each_other_are_a_422(service: httpx.Client, wishes: dict[str, object]) -> None:
    assert "contradict each other" in post(service, "/rerank", 422, documents=TEXTS, **wishes)["detail"]


LEFT = [{"truncation_side": "left"}, {"truncation_direction": "Left"}, {"truncation_direction": "left"}]


@pytest.mark.parametrize("left", LEFT)
def test_cut_on_the_left_a_document_counts_by_its_last_tokens(
    service: httpx.Client, reranker: KaLMReranker, left: dict[str, str]
) -> None:
    def tokens(count: int) -> int:
        return len(reranker.passage_side.tokenizer.passage(" ".join(WORDS[-count:]), 1000).ids)

    last = next(count for count in range(1, 60) if tokens(count) == MAX_LENGTH)
    [expected] = values(post(service, "/rerank", documents=[" ".join(WORDS[-last:])], raw_scores=True))
    answer = post(service, "/rerank", documents=[LONG, "short"], raw_scores=True, **left)
    assert values(answer)[0] == pytest.approx(expected, abs=1e-5)
    assert answer["meta"]["truncated"] == [0]
    right = values(post(service, "/rerank", documents=[LONG, "short"], raw_scores=True))
    assert values(answer)[0] != pytest.approx(right[0], abs=1e-4)
    assert values(answer)[1] == pytest.approx(right[1], abs=1e-5)
    [pair] = post(service, "/score", text_1=QUERY, text_2=LONG, raw_scores=True, **left)["data"]
    assert pair["score"] == pytest.approx(expected, abs=1e-5)


def test_stored_states_serve_only_where_nothing_would_be_cut_otherwise(service: httpx.Client) -> None:
    longest = max(CORPUS, key=lambda doc_id: len(CORPUS[doc_id].split()))
    documents = [{"doc_id": doc_id, "text": CORPUS[doc_id]} for doc_id in ("s1", longest)]

    def caches(**options: object) -> dict[int, str]:
        results = post(service, "/rerank", documents=documents, **options)["results"]
        return {one["index"]: one["cache"] for one in results}

    assert caches() == {0: "hit", 1: "hit"}
    assert caches(truncation_side="left") == {0: "hit", 1: "encoded"}
    assert caches(max_tokens_per_doc=1000) == {0: "hit", 1: "hit"}
    assert caches(max_tokens_per_doc=5) == {0: "encoded", 1: "encoded"}
    refused = post(service, "/rerank", 422, ids=["s1", longest], truncation_side="left")
    assert f"as {longest!r}" in refused["detail"]
    assert post(service, "/rerank", ids=["s1"], truncation_side="left")["results"][0]["cache"] == "hit"


@pytest.mark.parametrize("limit", [0, -5, "5", True, 1.5, [1]])
@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/score"])
def test_a_bad_max_tokens_per_doc_is_a_400(service: httpx.Client, path: str, limit: object) -> None:
    columns = {"queries": QUERY} if path == "/score" else {}
    error = post(service, path, 400, documents=TEXTS, max_tokens_per_doc=limit, **columns)["error"]
    assert "max_tokens_per_doc must be a positive integer" in error["message"]
    assert error["code"] == 400


def test_usage_counts_what_is_left_after_the_cut(service: httpx.Client) -> None:
    whole, cut = (
        post(service, "/rerank", documents=[LONG], **more)["usage"] for more in ({}, {"max_tokens_per_doc": 8})
    )
    assert whole["prompt_tokens"] - cut["prompt_tokens"] == MAX_LENGTH - 8
    assert [usage["prompt_tokens"] for usage in (whole, cut)] == [usage["total_tokens"] for usage in (whole, cut)]


@pytest.mark.parametrize(
    "columns", [{"queries": QUERY, "documents": []}, {"text_1": [], "text_2": []}, {"data_1": QUERY, "data_2": []}]
)
def test_two_columns_without_a_document_are_a_400(service: httpx.Client, columns: dict[str, object]) -> None:
    error = post(service, "/score", 400, **columns)["error"]
    assert (error["code"], error["type"]) == (400, "EmptyError")
    assert error["message"] == f"`{list(columns)[1]}` cannot be empty"


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"texts": []}, "Empty", "`texts` cannot be empty"),
        (422, {"texts": "no list"}, "Validation", "texts: Input should be a valid list"),
        (422, {"texts": [LONG], "truncate": False}, "Validation", "more tokens than count"),
        (413, {"texts": ["a"] * 5000}, "Validation", "texts in one request"),
        (400, {"texts": ["a"], "model": "another"}, "Validation", "'another' is not served here"),
    ],
)
def test_text_embeddings_inference_has_errors_as_two_strings(
    service: httpx.Client, status: int, body: dict[str, object], kind: str, message: str
) -> None:
    answer = post(service, "/rerank", status, **body)
    assert (answer.keys(), answer["error_type"]) == ({"error", "error_type"}, kind)
    assert message in answer["error"]


def test_text_embeddings_inference_describes_itself(service: httpx.Client) -> None:
    info = service.get("/info").json()
    assert info.keys() >= {
        *("model_id", "model_sha", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests"),
        *("max_input_length", "max_batch_tokens", "max_batch_requests", "max_client_batch_size", "auto_truncate"),
        *("tokenization_workers", "version", "sha", "docker_label"),
    }
    assert (info["auto_truncate"], info["max_batch_requests"], info["sha"]) == (True, None, None)
    assert min(info[name] for name in ("max_batch_tokens", "tokenization_workers", "max_client_batch_size")) > 0


def test_infinity_tells_the_time_and_its_load_and_needs_no_key_for_the_first(index_folder: Path) -> None:
    before = time.time()
    with serving(index_folder, api_keys="key") as client:
        assert before <= client.get("/infinity/health").json()["unix"] <= time.time()
        assert client.get("/infinity/models").status_code == 401
        client.headers["authorization"] = "Bearer key"
        models = client.get("/infinity/models").json()
        assert (models["object"], [one["id"] for one in models["data"]]) == (
            "list",
            [one["id"] for one in client.get("/v1/models").json()["data"]],
        )
        [model] = models["data"]
        assert (model["object"], model["owned_by"], model["capabilities"]) == ("model", "infinity", ["rerank"])
        assert model["stats"].keys() == {"queue_fraction", "queue_absolute", "results_pending", "batch_size"}
        assert model["stats"]["queue_fraction"] == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"documents": []}, "documents"),
        ({"texts": []}, "texts"),
        ({"documents": TEXTS, "top_n": 0}, "top_n"),
        ({"documents": TEXTS, "top_n": -1}, "top_n"),
        ({"documents": [LONG], "truncate": False}, None),
    ],
)
def test_infinitys_422_is_a_list_of_problems(service: httpx.Client, body: dict[str, object], field: str | None) -> None:
    answer = post(service, "/infinity/rerank", 422, **body)
    [problem] = answer["detail"]
    assert (problem.keys(), problem["loc"]) == ({"loc", "msg", "type"}, ["body", field] if field else ["body"])
    assert answer["error"]["code"] == 422


@pytest.mark.parametrize(("path", "version"), [("/v1/rerank", "1"), ("/v2/rerank", "2")])
def test_cohere_names_its_version_and_search_units(service: httpx.Client, path: str, version: str) -> None:
    meta = post(service, path, documents=["a"] * 101)["meta"]
    assert (meta["api_version"], meta["billed_units"]) == ({"version": version}, {"search_units": 2})
    assert "api_version" not in post(service, path, ids=["s1"])["meta"]
    refused = post(service, path, 422, documents=TEXTS, top_n=-1)
    assert refused["message"] == refused["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/rerank", {"message"}), ("/v2//rerank/", {"message"}), ("/infinity/rerank", set()), ("/rerank", set())],
)
def test_what_is_refused_before_the_body_is_read_is_in_the_words_of_its_path(
    index_folder: Path, path: str, fields: set[str]
) -> None:
    coded = path != "/rerank"  # which may be anybody's
    with serving(index_folder, api_keys="key", max_body_bytes=100, allowed_hosts="known.example") as client:
        key = {"authorization": "Bearer key"}
        for status, sent in {
            401: {"json": {}},
            405: {"headers": key, "method": "GET"},
            413: {"json": {"query": "x" * 200}, "headers": key},
            415: {"content": b"x", "headers": key | {"content-type": "text/plain"}},
            421: {"json": {}, "headers": key | {"host": "other.example"}},
        }.items():
            response = client.request(**{"method": "POST", "url": path} | sent)  # type: ignore[arg-type]
            answer = response.json()
            assert (response.status_code, answer.keys()) == (status, {"error", "detail"} | fields), answer
            assert answer["error"].get("code") == (status if coded else None)
            assert {answer[name] for name in {"detail"} | fields} == {answer["error"]["message"]}
