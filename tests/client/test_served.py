"""Clients and a real service: their answers are those of the index that is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker, PassageIndex
from kalm_cache.client import Explanation
from kalm_cache.errors import (
    AccessDeniedError,
    DeadlineExceededError,
    ServiceError,
    ServiceUnavailableError,
    UnknownIdError,
    UsageError,
)
from kalm_cache.scoring.ranking import SearchResult
from tests.query_service.conftest import CORPUS, MAX_LENGTH, serving

QUERY = "Where do bees dance?"
IDS = ["s0", "l3", "s5", "ü/北"]


@pytest.fixture(scope="module")
def client(service: httpx.Client) -> Iterator[Client]:
    with Client(str(service.base_url)) as connected:
        yield connected


@pytest.fixture(scope="module")
def without_encoder(decoder_only: httpx.Client) -> Iterator[Client]:
    with Client(str(decoder_only.base_url)) as connected:
        yield connected


def same(served: Any, local: Any) -> None:
    """Equal but for rounding in batches of other sizes, and for what a service adds."""
    assert (served.query, served.query_truncated, served.damaged) == (
        local.query,
        local.query_truncated,
        local.damaged,
    )
    names = [field.name for field in dataclasses.fields(SearchResult)]
    fields, expected = ([[getattr(hit, name) for name in names] for hit in of.results] for of in (served, local))
    assert expected  # an empty answer would equal another one
    assert fields == [
        [pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for value in hit] for hit in expected
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 5, "top_n": 2},
        {"top_n": None, "first_stage": "bm25"},
        {"instruction": "Find the passage.", "chunk_size": 8, "with_text": False},
        {"first_stage_weight": 2.0},
    ],
)
def test_a_search_is_answered_as_by_the_index(client: Client, index: PassageIndex, options: Any) -> None:
    answer = client.search(QUERY, **options)
    same(answer, index.search(QUERY, **options))
    assert answer.index_version == "000001"


@pytest.mark.parametrize("options", [{}, {"top_n": 2}, {"with_text": False, "chunk_size": 8}])
def test_stored_passages_are_ranked_as_by_the_index(client: Client, index: PassageIndex, options: Any) -> None:
    answer = client.rerank(QUERY, IDS, **options)
    same(answer, index.rerank(QUERY, IDS, **options))
    assert {hit.cache for hit in answer.results} == {"hit"}
    assert [hit.index for hit in answer.results] == [IDS.index(hit.doc_id) for hit in answer.results]


def test_the_asynchronous_client_gives_the_same_answers(client: Client) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(client.base_url) as later:
            searched = await later.search(QUERY)
            return [searched, await later.rerank(QUERY, IDS), await later.margins(QUERY, IDS), await later.ready()]

    searched, reranked, margins, ready = anyio.run(ask)
    same(searched, client.search(QUERY))
    same(reranked, client.rerank(QUERY, IDS))
    assert margins == pytest.approx(client.margins(QUERY, IDS), abs=1e-5)
    assert ready is True


def test_an_explanation_says_where_the_query_looked(client: Client, index: PassageIndex) -> None:
    explanation = client.explain(QUERY, "s5", chunk_size=4)
    assert (explanation.doc_id, explanation.text) == ("s5", CORPUS["s5"])
    assert explanation.margin == pytest.approx(index.margins(QUERY, ["s5"], chunk_size=4)[0], abs=1e-4)
    assert sum(chunk.weight for chunk in explanation.chunks) == pytest.approx(1)
    starts = [chunk.start for chunk in explanation.chunks]
    assert len(starts) > 1
    assert starts == sorted(starts)

    async def ask() -> Explanation:
        async with AsyncClient(client.base_url) as later:
            return await later.explain(QUERY, "s5", chunk_size=4)

    assert anyio.run(ask).chunks == explanation.chunks
    with pytest.raises(UnknownIdError):
        client.explain(QUERY, "nobody")


def test_documents_are_ranked_and_pairs_are_scored_as_by_the_reranker(client: Client, mini_folder: Path) -> None:
    reranker = KaLMReranker(str(mini_folder), device="cpu", max_length=MAX_LENGTH)
    texts = [CORPUS[doc_id] for doc_id in IDS]
    expected = reranker.rank(QUERY, texts, return_margin=True)
    ranking = client.rank(QUERY, texts, return_margin=True, cache=False)
    assert [entry["corpus_id"] for entry in ranking] == [entry["corpus_id"] for entry in expected]
    assert [entry["margin"] for entry in ranking] == pytest.approx([entry["margin"] for entry in expected], abs=1e-4)
    answer = client.rerank(QUERY, documents=[{"text": text, "id": f"my {i}"} for i, text in enumerate(texts)])
    assert [(hit.doc_id, hit.text) for hit in answer.results] == [
        (f"my {entry['corpus_id']}", texts[entry["corpus_id"]]) for entry in expected
    ]
    pairs = [(QUERY, text) for text in texts]
    assert client.predict(pairs, batch_size=3, cache=False) == pytest.approx(reranker.predict(pairs), abs=1e-5)


def test_stored_and_raw_passages_are_scored_together(client: Client, index: PassageIndex) -> None:
    tagged = [{name: 7, "query": QUERY, "document": CORPUS["s5"]} for name in ("label", "id")]
    scores = client.score([(QUERY, {"doc_id": "s5"}), *tagged, (QUERY, {"id": "s5"})])
    assert scores[0].margin == pytest.approx(index.margins(QUERY, ["s5"])[0], abs=1e-5)
    assert scores[1].margin == pytest.approx(scores[0].margin, abs=5e-3)  # stored in half precision
    assert scores[3].margin == pytest.approx(scores[0].margin, abs=1e-5)
    assert [pair.label for pair in scores] == [None, 7, 7, None]
    assert client.margins(QUERY, IDS) == pytest.approx(index.margins(QUERY, IDS), abs=1e-5)


def test_unknown_ids_are_an_error_or_left_out(client: Client) -> None:
    with pytest.raises(UnknownIdError) as failure:
        client.rerank(QUERY, ["s0", "not-there"])
    assert failure.value.ids == ["not-there"]
    answer = client.rerank(QUERY, ["s0", "not-there"], on_missing="skip")
    assert ([hit.doc_id for hit in answer.results], answer.missing) == (["s0"], ["not-there"])


def test_what_the_service_cannot_serve_is_a_usage_error(client: Client, without_encoder: Client) -> None:
    with pytest.raises(UsageError, match="multiple"):
        client.rerank(QUERY, IDS, chunk_size=3)
    with pytest.raises(UsageError, match="without the encoder"):
        without_encoder.rank(QUERY, ["a text"])
    with pytest.raises(ServiceError, match="HTTP 404"):
        client.request("/nothing")


def test_health_readiness_and_names(client: Client) -> None:
    assert client.health()["status"] == "ok"
    assert client.ready() is True
    assert client.models() == [client.health()["model"]]


def test_a_budget_comes_back_as_a_plan(client: Client) -> None:
    plan = client.search(QUERY, budget_ms=10_000).plan
    assert plan is not None
    assert not plan.reduced


def test_the_services_deadline_is_an_error_of_its_own(client: Client) -> None:
    texts = [f"{text} {number}" for number in range(40) for text in CORPUS.values()]
    with pytest.raises(DeadlineExceededError):
        client.rerank(QUERY, documents=texts, timeout_ms=1)


def test_keys_are_asked_for_and_taken_from_the_environment(index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_API_KEYS", "right,other")
    with serving(index_folder) as served:
        monkeypatch.setenv("KALM_CACHE_API_KEY", "right")
        with Client(str(served.base_url)) as client:
            assert client.rerank(QUERY, IDS).results
        with Client(str(served.base_url), api_key="wrong") as client, pytest.raises(AccessDeniedError, match="401"):
            client.rerank(QUERY, IDS)


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client:
        assert client.ready() is False
        with pytest.raises(ServiceUnavailableError, match="cannot be reached"):
            client.search(QUERY)
