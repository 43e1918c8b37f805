"""LlamaIndex's postprocessors for other services."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

schema = pytest.importorskip("llama_index.core.schema", reason="llama-index-core is not installed")


def reranked(postprocessor: Any) -> list[tuple[int, float]]:
    """Row and score of each node that is kept."""
    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text, id_=str(row))) for row, text in enumerate(TEXTS)]
    return [(int(one.node.node_id), one.score) for one in postprocessor.postprocess_nodes(nodes, query_str=QUERY)]


def test_the_cohere_postprocessor_ranks(url: str, model: str, order: list[int], scores: list[object]) -> None:
    library = pytest.importorskip(
        "llama_index.postprocessor.cohere_rerank", reason="llama-index-postprocessor-cohere-rerank is not installed"
    )
    kept = reranked(library.CohereRerank(api_key=KEY, model=model, top_n=3, base_url=url, max_retries=1))
    assert kept == list(zip(order[:3], scores[:3], strict=True))


def test_the_jina_postprocessor_ranks(drop_in: str, order: list[int], scores: list[object]) -> None:
    library = pytest.importorskip(
        "llama_index.postprocessor.jinaai_rerank", reason="llama-index-postprocessor-jinaai-rerank is not installed"
    )
    kept = reranked(library.JinaRerank(api_key=KEY, top_n=3, base_url=f"{drop_in}/v1"))
    assert kept == list(zip(order[:3], scores[:3], strict=True))
    with pytest.raises(RuntimeError, match="key"):
        reranked(library.JinaRerank(api_key="wrong", base_url=f"{drop_in}/v1"))


def test_the_text_embeddings_inference_postprocessor_ranks(
    url: str, drop_in: str, order: list[int], scores: list[object]
) -> None:
    library = pytest.importorskip(
        "llama_index.postprocessor.tei_rerank", reason="llama-index-postprocessor-tei-rerank is not installed"
    )
    assert reranked(library.TextEmbeddingInference(base_url=url, top_n=4)) == list(zip(order, scores, strict=True))
    kept = reranked(library.TextEmbeddingInference(base_url=drop_in, top_n=2, auth_token=f"Bearer {KEY}"))
    assert [row for row, _ in kept] == order[:2]
