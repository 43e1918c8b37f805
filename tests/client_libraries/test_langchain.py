"""LangChain's compressors for other services."""

from __future__ import annotations

import pytest

from tests.client_libraries.conftest import KEY, QUERY, TEXTS

documents = pytest.importorskip("langchain_core.documents", reason="langchain-core is not installed")
FOUND = [documents.Document(text, metadata={"row": row}) for row, text in enumerate(TEXTS)]


def test_the_cohere_compressor_ranks(url: str, model: str, order: list[int], scores: list[object]) -> None:
    library = pytest.importorskip("langchain_cohere", reason="langchain-cohere is not installed")
    compressor = library.CohereRerank(model=model, cohere_api_key=KEY, base_url=url, top_n=3)
    kept = compressor.compress_documents(FOUND, QUERY)
    assert [one.metadata["row"] for one in kept] == order[:3]
    assert [one.metadata["relevance_score"] for one in kept] == scores[:3]


@pytest.mark.filterwarnings("ignore:.*langchain-community.*:DeprecationWarning")
def test_the_jina_compressor_ranks(drop_in: str, monkeypatch: pytest.MonkeyPatch, order: list[int]) -> None:
    library = pytest.importorskip(
        "langchain_community.document_compressors.jina_rerank", reason="langchain-community is not installed"
    )
    monkeypatch.setattr(library, "JINA_API_URL", f"{drop_in}/v1/rerank")  # it has no option for that
    kept = library.JinaRerank(jina_api_key=KEY, top_n=3).compress_documents(FOUND, QUERY)
    assert [one.metadata["row"] for one in kept] == order[:3]
    with pytest.raises(RuntimeError, match="key"):
        library.JinaRerank(jina_api_key="wrong").compress_documents(FOUND, QUERY)
