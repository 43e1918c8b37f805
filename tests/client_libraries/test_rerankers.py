"""The `rerankers` package, by those of its API rankers whose address is that of a rerank service."""

from __future__ import annotations

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

rankers = pytest.importorskip("rerankers.models.api_rankers", reason="rerankers is not installed")


@pytest.mark.parametrize(
    ("provider", "path"),
    [
        ("cohere", "/v1/rerank"),
        ("cohere", "/v2/rerank"),
        ("jina", "/v1/rerank"),
        ("text-embeddings-inference", "/rerank"),
    ],
)
def test_documents_are_ranked_and_scored(
    provider: str, path: str, url: str, model: str, order: list[int], scores: list[object]
) -> None:
    ranker = rankers.APIRanker(model, KEY, provider, url=url + path)
    names = ["a", "b", "c", "d"]
    ranked = ranker.rank(QUERY, TEXTS, doc_ids=names).results
    assert [one.document.doc_id for one in ranked] == [names[i] for i in order]
    assert [one.score for one in ranked] == scores
    documents = rankers.prep_docs([TEXTS[order[0]]])
    assert ranker.score(QUERY, documents[0]) == scores[0]


def test_a_key_is_sent(drop_in: str, order: list[int]) -> None:
    ranked = rankers.APIRanker("any-model", KEY, "cohere", url=f"{drop_in}/v2/rerank").rank(QUERY, TEXTS)
    assert [one.document.doc_id for one in ranked.results] == order
