"""Haystack's rankers for other services."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed")
FOUND = [haystack.Document(content=text, meta={"row": row}) for row, text in enumerate(TEXTS)]


def rows(answer: Any) -> list[tuple[int, float]]:
    """Row and score of each document that is kept."""
    return [(one.meta["row"], one.score) for one in answer["documents"]]


def secret(key: str = KEY) -> Any:
    return haystack.utils.Secret.from_token(key)


def test_the_cohere_ranker_ranks(url: str, model: str, order: list[int], scores: list[object]) -> None:
    library = pytest.importorskip(
        "haystack_integrations.components.rankers.cohere", reason="cohere-haystack is not installed"
    )
    ranker = library.CohereRanker(model=model, api_key=secret(), api_base_url=url, top_k=3)
    assert rows(ranker.run(query=QUERY, documents=FOUND)) == list(zip(order[:3], scores[:3], strict=True))


def test_the_jina_ranker_ranks(drop_in: str, order: list[int], scores: list[object]) -> None:
    library = pytest.importorskip(
        "haystack_integrations.components.rankers.jina", reason="jina-haystack is not installed"
    )
    ranker = library.JinaRanker(api_key=secret(), base_url=f"{drop_in}/v1/rerank", top_k=3)
    answer = ranker.run(query=QUERY, documents=FOUND)
    assert rows(answer) == list(zip(order[:3], scores[:3], strict=True))
    assert answer["meta"]["usage"]["total_tokens"] > 0
    with pytest.raises(RuntimeError, match="key"):
        library.JinaRanker(api_key=secret("wrong"), base_url=f"{drop_in}/v1/rerank").run(query=QUERY, documents=FOUND)


def test_the_text_embeddings_inference_ranker_ranks(
    url: str, drop_in: str, order: list[int], scores: list[object], margins: list[object]
) -> None:
    library = pytest.importorskip(
        "haystack_integrations.components.rankers.huggingface_api", reason="huggingface-api-haystack is not installed"
    )
    ranker = library.HuggingFaceTEIRanker
    answer = ranker(url=url, top_k=3, token=None).run(query=QUERY, documents=FOUND)
    assert rows(answer) == list(zip(order[:3], scores[:3], strict=True))
    later = asyncio.run(ranker(url=drop_in, raw_scores=True, token=secret()).run_async(query=QUERY, documents=FOUND))
    assert rows(later) == list(zip(order, margins, strict=True))
    with pytest.raises(RuntimeError, match="key"):
        ranker(url=drop_in, token=secret("wrong"), max_retries=1).run(query=QUERY, documents=FOUND)
