from __future__ import annotations

import anyio
import pytest

from kalm_cache import AsyncClient, Client, PassageIndex
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

documents = pytest.importorskip("langchain_core.documents", reason="langchain-core is not installed")
adapters = pytest.importorskip("kalm_cache.adapters.langchain")

RETRIEVED = [documents.Document(CORPUS[doc_id], metadata={"_id": doc_id, "page": 3}) for doc_id in IDS]


def test_documents_are_reranked_by_their_ids(index: PassageIndex, client: Client, sent: Sent) -> None:
    expected = index.rerank(QUERY, IDS, top_n=2).results
    for backend in (index, client):
        kept = adapters.KaLMCompressor(backend=backend, top_n=2).compress_documents(RETRIEVED, QUERY)
        assert [document.metadata["_id"] for document in kept] == [hit.doc_id for hit in expected]
        assert [document.metadata["relevance_margin"] for document in kept] == pytest.approx(
            [hit.margin for hit in expected]
        )
        assert kept[0].metadata["page"] == 3
    assert [set(body) for _, body in sent] == [{"query", "ids", "return_margin", "return_documents", "on_missing"}]
    assert RETRIEVED[0].metadata == {"_id": IDS[0], "page": 3}


def test_an_asynchronous_chain_awaits_an_asynchronous_client(async_client: AsyncClient, index: PassageIndex) -> None:
    kept = anyio.run(adapters.KaLMCompressor(backend=async_client).acompress_documents, RETRIEVED, QUERY)
    same = anyio.run(adapters.KaLMCompressor(backend=index).acompress_documents, RETRIEVED, QUERY)
    assert [document.metadata["_id"] for document in kept] == [document.metadata["_id"] for document in same]


def test_ids_may_be_those_of_the_documents_or_of_a_field(index: PassageIndex) -> None:
    own = [documents.Document(CORPUS[doc_id], id=doc_id) for doc_id in IDS]
    field = [documents.Document(CORPUS[doc_id], id=f"row {doc_id}", metadata={"key": doc_id}) for doc_id in IDS]
    by_own = adapters.KaLMCompressor(backend=index).compress_documents(own, QUERY)
    by_field = adapters.KaLMCompressor(backend=index, id_field="key").compress_documents(field, QUERY)
    assert [document.id for document in by_own] == [document.metadata["key"] for document in by_field]


def test_documents_below_the_least_score_are_left_out(index: PassageIndex) -> None:
    scores = [hit.score for hit in index.rerank(QUERY, IDS).results]
    compressor = adapters.KaLMCompressor(backend=index, min_score=(scores[1] + scores[2]) / 2)
    assert len(compressor.compress_documents(RETRIEVED, QUERY)) == 2
    assert compressor.compress_documents([], QUERY) == []


def test_a_retriever_that_compresses_is_a_search_and_a_rerank(index: PassageIndex) -> None:
    retrievers = pytest.importorskip("langchain_classic.retrievers", reason="langchain-classic is not installed")
    from langchain_core.retrievers import BaseRetriever

    class FirstStage(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: object) -> list[object]:
            return RETRIEVED

    chain = retrievers.ContextualCompressionRetriever(
        base_compressor=adapters.KaLMCompressor(backend=index, top_n=1), base_retriever=FirstStage()
    )
    [best] = chain.invoke(QUERY)
    assert best.metadata["_id"] == index.rerank(QUERY, IDS).results[0].doc_id
