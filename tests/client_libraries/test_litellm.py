"""LiteLLM's `rerank`, by the providers whose address can be set: each has a request and a reading of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

litellm = pytest.importorskip("litellm", reason="litellm is not installed")

PROVIDERS = ["cohere", "jina_ai", "hosted_vllm", "huggingface", "infinity"]


def base_of(provider: str, url: str) -> str:
    """Infinity's requests look as vLLM's, but their answers do not: it has a mount of its own."""
    return f"{url}/infinity" if provider == "infinity" else url


@pytest.mark.parametrize("return_documents", [None, True, False])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_ranks(
    provider: str, return_documents: bool | None, url: str, model: str, order: list[int], scores: list[object]
) -> None:
    options = {} if return_documents is None else {"return_documents": return_documents}
    answer = litellm.rerank(
        model=f"{provider}/{model}",
        query=QUERY,
        documents=TEXTS,
        top_n=3,
        api_base=base_of(provider, url),
        api_key=KEY,
        **options,
    )
    assert [one["index"] for one in answer.results] == order[:3]
    assert [one["relevance_score"] for one in answer.results] == scores[:3]
    expected = [None] * 3 if return_documents is False else [{"text": TEXTS[i]} for i in order[:3]]
    assert [one.get("document") for one in answer.results] == expected


def test_asynchronously(url: str, model: str, order: list[int]) -> None:
    async def ask() -> Any:
        return await litellm.arerank(
            model=f"hosted_vllm/{model}", query=QUERY, documents=TEXTS, api_base=url, api_key=KEY
        )

    assert [one["index"] for one in asyncio.run(ask()).results] == order


def test_the_instruction_of_a_vllm_server_is_that_of_the_service(url: str, model: str, order: list[int]) -> None:
    def margins(**options: str) -> list[float]:
        answer = litellm.rerank(
            model=f"hosted_vllm/{model}", query=QUERY, documents=TEXTS, api_base=url, api_key=KEY, **options
        )
        return [one["relevance_score"] for one in sorted(answer.results, key=lambda one: one["index"])]

    assert margins(instruction="Find the passage.") != pytest.approx(margins(), abs=1e-4)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_failures_say_what_the_service_says(provider: str, url: str, model: str) -> None:
    with pytest.raises(Exception, match="top_n: Input should be greater than"):
        litellm.rerank(
            model=f"{provider}/{model}",
            query=QUERY,
            documents=TEXTS,
            top_n=-1,
            api_base=base_of(provider, url),
            api_key=KEY,
        )
