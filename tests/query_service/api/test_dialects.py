"""What one request may say in the words of several services, and what it may leave out."""

from __future__ import annotations

import httpx
import pytest

from tests.query_service.conftest import CORPUS, serving

QUERY = "Where do bees dance?"
TEXTS = list(CORPUS.values())[:3]
LONG = " ".join(["honey"] * 100)


def post(client: httpx.Client, path: str, **body: object) -> httpx.Response:
    return client.post(path, json={"query": QUERY, **body})


def scores(response: httpx.Response) -> dict[int, float]:
    assert response.status_code == 200, response.text
    return {one["index"]: one["relevance_score"] for one in response.json()["results"]}


def test_a_stored_document_is_taken_from_the_cache_and_another_text_under_its_id_is_encoded(
    service: httpx.Client,
) -> None:
    documents = [{"id": "s1", "text": CORPUS["s1"]}, {"id": "s2", "text": "an edited text"}, {"id": "new", "text": "x"}]
    results = post(service, "/rerank", documents=documents).json()["results"]
    assert {one["id"]: one["cache"] for one in results} == {"s1": "hit", "s2": "encoded", "new": "encoded"}
    alone = scores(post(service, "/rerank", documents=["an edited text"]))
    assert scores(post(service, "/rerank", documents=documents))[1] == pytest.approx(alone[0], abs=1e-6)


def test_ids_may_bring_their_texts_which_serve_where_the_id_is_not_stored(service: httpx.Client) -> None:
    body = {"ids": ["s1", "gone"], "documents": [CORPUS["s1"], "a text of its own"]}
    answer = post(service, "/rerank", **body, return_documents=True).json()
    assert {one["doc_id"]: (one["cache"], one["document"]["text"]) for one in answer["results"]} == {
        "s1": ("hit", CORPUS["s1"]),
        "gone": ("encoded", "a text of its own"),
    }
    assert "2 ids and 1 documents" in post(service, "/rerank", ids=["s1", "s2"], documents=["x"]).text


@pytest.mark.parametrize("on_missing", ["error", "encode", None])
def test_an_id_without_a_text_that_is_not_stored_is_a_404(service: httpx.Client, on_missing: str | None) -> None:
    response = post(service, "/rerank", ids=["s1", "gone"], on_missing=on_missing)
    assert (response.status_code, response.json()["error"]["ids"]) == (404, ["gone"])


def test_missing_passages_may_be_skipped_and_are_named(service: httpx.Client) -> None:
    answer = post(service, "/rerank", ids=["gone", "s1"], on_missing="skip").json()
    assert [(one["index"], one["doc_id"]) for one in answer["results"]] == [(1, "s1")]
    assert answer["meta"]["missing"] == ["gone"]


def test_stored_documents_need_no_encoder(decoder_only: httpx.Client) -> None:
    stored = {"id": "s1", "text": CORPUS["s1"]}
    [result] = post(decoder_only, "/rerank", documents=[stored]).json()["results"]
    assert result["cache"] == "hit"
    assert post(decoder_only, "/rerank", documents=[stored, "raw"]).status_code == 400
    answer = post(decoder_only, "/rerank", documents=[stored, {"id": "x", "text": "y"}], on_missing="skip").json()
    assert answer["meta"]["missing"] == ["x"]


def test_every_field_may_be_null(service: httpx.Client) -> None:
    names = [
        "top_n top_k return_documents return_text raw_scores truncate truncation_direction max_tokens_per_doc",
        "truncate_prompt_tokens truncation_side use_activation activation on_missing instruction chunk_size",
        "model timeout_ms ids texts",
    ]
    nulls = dict.fromkeys(" ".join(names).split())
    plain = scores(post(service, "/rerank", documents=TEXTS))
    assert scores(post(service, "/v2/rerank", documents=TEXTS, **nulls)) == pytest.approx(plain, abs=1e-6)


def test_what_is_cut_is_reported_or_refused(service: httpx.Client) -> None:
    answer = post(service, "/rerank", documents=["short", LONG])
    assert answer.json()["meta"]["truncated"] == [1]
    assert post(service, "/rerank", texts=["short", LONG]).headers["x-truncated"] == "1"
    refused = post(service, "/rerank", texts=["short", LONG], truncate=False)
    assert refused.status_code == 422
    assert "1 passages have more tokens" in refused.text
    assert post(service, "/rerank", texts=["short"], truncate=False).status_code == 200


@pytest.mark.parametrize("name", ["max_tokens_per_doc", "truncate_prompt_tokens"])
def test_fewer_tokens_of_a_document_may_count(service: httpx.Client, name: str) -> None:
    whole, cut = (post(service, "/rerank", documents=[LONG], **more).json() for more in ({}, {name: 8}))
    assert (whole["usage"]["passage_tokens"], cut["usage"]["passage_tokens"]) == (48, 8)
    assert cut["meta"]["truncated"] == [0]


def test_infinity_has_a_base_url_of_its_own_where_documents_are_strings(service: httpx.Client) -> None:
    plain = post(service, "/rerank", documents=TEXTS, return_documents=True).json()["results"]
    theirs = post(service, "/infinity/rerank", documents=TEXTS, return_documents=True).json()["results"]
    assert [one["document"] for one in theirs] == [one["document"]["text"] for one in plain]
    assert "document" not in post(service, "/infinity/rerank", documents=TEXTS).json()["results"][0]


def test_the_model_may_be_named_as_it_is_served_and_no_other_way(service: httpx.Client) -> None:
    [model] = service.get("/v1/models").json()["data"]
    assert post(service, "/rerank", ids=["s1"], model=model["id"]).status_code == 200
    refused = post(service, "/search", model="rerank-v3.5")
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "UnknownModelError")
    assert repr(model["id"]) in refused.json()["detail"]


def test_the_operator_chooses_the_names(index_folder: object) -> None:
    with serving(index_folder, served_model_name="rerank-v3.5, bge, *") as client:  # type: ignore[arg-type]
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["rerank-v3.5", "bge"]
        answer = post(client, "/rerank", ids=["s1"], model="something else").json()
        assert answer["model"] == "rerank-v3.5"


def test_limits_are_kept_and_named(index_folder: object) -> None:
    limits = {"max_documents": 4, "max_query_chars": 40, "max_body_bytes": 2000}
    with serving(index_folder, **limits) as client:  # type: ignore[arg-type]
        many = post(client, "/rerank", ids=["s1"] * 5)
        assert (many.status_code, many.json()["error"]["type"]) == (413, "TooManyError")
        assert post(client, "/search", k=5).status_code == 413
        assert post(client, "/search", k=4).status_code == 200
        assert "at most 40" in client.post("/search", json={"query": "x" * 41}).json()["detail"]
        assert client.post("/search", json={"query": "x" * 3000}).status_code == 413
        assert client.get("/info").json()["max_documents"] == 4
