"""Cohere's own client, versions 1 and 2 of its API."""

from __future__ import annotations

import asyncio

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

cohere = pytest.importorskip("cohere", reason="cohere is not installed")


def test_version_1_ranks_and_gives_documents_back(url: str, model: str, order: list[int], scores: list[object]) -> None:
    answer = cohere.Client(KEY, base_url=url).rerank(
        model=model, query=QUERY, documents=TEXTS, top_n=2, return_documents=True, max_chunks_per_doc=10
    )
    assert [one.index for one in answer.results] == order[:2]
    assert [one.relevance_score for one in answer.results] == scores[:2]
    assert [one.document.text for one in answer.results] == [TEXTS[i] for i in order[:2]]
    assert answer.id.startswith("rerank-")


def test_version_1_takes_documents_with_fields(url: str, model: str, order: list[int]) -> None:
    documents = [{"text": text, "title": "a title"} for text in TEXTS]
    answer = cohere.Client(KEY, base_url=url).rerank(
        model=model, query=QUERY, documents=documents, rank_fields=["text"]
    )
    assert [(one.index, one.document) for one in answer.results] == [(i, None) for i in order]


def test_version_2_ranks(url: str, model: str, order: list[int], scores: list[object]) -> None:
    answer = cohere.ClientV2(KEY, base_url=url).rerank(
        model=model, query=QUERY, documents=TEXTS, max_tokens_per_doc=4096
    )
    assert [one.index for one in answer.results] == order
    assert [one.relevance_score for one in answer.results] == scores


def test_the_asynchronous_client_ranks(url: str, model: str, order: list[int]) -> None:
    async def ask() -> list[int]:
        client = cohere.AsyncClientV2(KEY, base_url=url)
        answer = await client.rerank(model=model, query=QUERY, documents=TEXTS)
        return [one.index for one in answer.results]

    assert asyncio.run(ask()) == order


def test_any_model_name_will_do_where_the_service_says_so(drop_in: str, order: list[int]) -> None:
    answer = cohere.ClientV2(KEY, base_url=drop_in).rerank(model="rerank-v3.5", query=QUERY, documents=TEXTS)
    assert [one.index for one in answer.results] == order


def test_failures_are_the_clients_own(url: str, model: str, drop_in: str) -> None:
    client = cohere.ClientV2(KEY, base_url=url)
    with pytest.raises(cohere.BadRequestError, match="no-such-model"):
        client.rerank(model="no-such-model", query=QUERY, documents=TEXTS)
    with pytest.raises(cohere.UnprocessableEntityError, match="top_n"):
        client.rerank(model=model, query=QUERY, documents=TEXTS, top_n=-1)
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2("wrong", base_url=drop_in).rerank(model=model, query=QUERY, documents=TEXTS)
