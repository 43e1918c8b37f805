"""A rerank server without an index: every dialect answers texts, and what needs an index says that there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kalm_cache.errors import UsageError
from kalm_cache.reranker import KaLMReranker
from kalm_cache.settings import load_settings
from query_service.server import run_server
from tests.query_service.conftest import MAX_LENGTH, serving_texts

QUERY = "bees"
TEXTS = ["bees make honey", "a stone", "bees sting"]


@pytest.fixture(scope="module")
def client(mini_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving_texts(
        mini_folder, text_cache=str(tmp_path_factory.mktemp("cache")), served_model_name="mini"
    ) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/infinity/rerank"])
def test_every_dialect_ranks_texts_as_the_library_does(client: httpx.Client, mini_folder: Path, path: str) -> None:
    library = KaLMReranker(str(mini_folder), device="cpu", dtype="float32", max_length=MAX_LENGTH)
    expected = library.predict([(QUERY, text) for text in TEXTS])
    results = client.post(path, json={"query": QUERY, "documents": TEXTS}).json()["results"]
    scores = {one["index"]: one["relevance_score"] for one in results}
    assert [scores[i] for i in range(len(TEXTS))] == pytest.approx(expected, abs=1e-4)


def test_texts_pairs_and_columns_are_scored(client: httpx.Client) -> None:
    array = client.post("/rerank", json={"query": QUERY, "texts": TEXTS}).json()
    by_position = [one["score"] for one in sorted(array, key=lambda one: one["index"])]
    columns = client.post("/score", json={"queries": QUERY, "documents": TEXTS}).json()["data"]
    assert [one["score"] for one in columns] == pytest.approx(by_position, abs=1e-4)
    pairs = [{"query": QUERY, "document": text} for text in TEXTS]
    results = client.post("/score", json={"pairs": pairs}).json()["results"]
    assert [one["score"] for one in results] == pytest.approx(by_position, abs=1e-4)


def test_a_document_with_an_id_keeps_it_and_is_scored_by_its_text(client: httpx.Client) -> None:
    document = {"id": "d1", "text": TEXTS[0]}
    [result] = client.post("/rerank", json={"query": QUERY, "documents": [document]}).json()["results"]
    assert (result["id"], result["doc_id"]) == ("d1", "d1")
    body = {"query": QUERY, "ids": ["d1"], "documents": [TEXTS[0]], "return_documents": True}
    [result] = client.post("/rerank", json=body).json()["results"]
    assert result["document"] == {"text": TEXTS[0]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/search", {"query": QUERY}),
        ("/explain", {"query": QUERY, "doc_id": "d1"}),
        ("/rerank", {"query": QUERY, "ids": ["d1"]}),
        ("/rerank", {"query": QUERY, "documents": [{"id": "d1", "text": "a"}], "on_missing": "error"}),
        ("/score", {"pairs": [{"query": QUERY, "doc_id": "d1"}]}),
    ],
)
def test_what_needs_an_index_is_a_400_that_says_there_is_none(client: httpx.Client, path: str, body: object) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "NoIndexError"
    assert "no index" in answer.json()["error"]["message"]


def test_an_unknown_id_may_still_be_skipped(client: httpx.Client) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "ids": ["d1"], "on_missing": "skip"}).json()
    assert (answer["results"], answer["meta"]["missing"]) == ([], ["d1"])


def test_the_service_says_what_it_is(client: httpx.Client) -> None:
    assert client.get("/ready").json()["index_version"] == "none"
    health, info = client.get("/health").json(), client.get("/info").json()
    assert (health["passages"], health["index_version"], health["text_cache"]["off"]) == (0, "none", "")
    assert (info["first_stage"], info["encodes_documents"], info["text_cache_gib"]) == ([], True, 4.0)
    assert (info["chunk_size"], info["max_input_length"], info["codec"]) == (4, MAX_LENGTH, "fp32")
    assert client.get("/v1/models").json()["data"][0]["id"] == "mini"
    assert client.get("/infinity/models").json()["data"][0]["id"] == "mini"
    assert 'kalm_cache_info{model="mini"' in client.get("/metrics").text


def test_there_is_nothing_to_serve_without_an_index_and_a_text_cache() -> None:
    with pytest.raises(UsageError, match="--index FOLDER, or --text-cache FOLDER"):
        run_server(None, load_settings())


def test_a_text_cache_without_the_encoder_is_a_contradiction(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs the encoder"):
        run_server(None, load_settings(text_cache=str(tmp_path), with_encoder=False))
