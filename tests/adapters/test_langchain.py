from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import anyio
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker, PassageIndex
from kalm_cache.errors import UsageError
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

documents = pytest.importorskip("langchain_core.documents", reason="langchain-core is not installed")
adapters = pytest.importorskip("kalm_cache.adapters.langchain")

TEXTS = dict.fromkeys(CORPUS[doc_id] for doc_id in IDS)
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


def test_a_model_that_is_named_encodes_every_text_once(tmp_path: Path) -> None:
    margins = [each["margin"] for each in KaLMReranker("tiny").rank(QUERY, list(TEXTS), return_margin=True)]
    for hits in (0, len(TEXTS)):
        compressor = adapters.KaLMCompressor(model="tiny", cache=tmp_path, cache_gib=0.05, top_n=len(TEXTS))
        kept = compressor.compress_documents([documents.Document(text) for text in TEXTS], QUERY)
        assert [each.metadata["relevance_margin"] for each in kept] == pytest.approx(margins, abs=2e-2)
        assert anyio.run(compressor.acompress_documents, RETRIEVED, QUERY)  # their ids mean nothing to it
        assert compressor._named.open().cache.counts.hits >= hits + len(TEXTS)
        compressor.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give a backend or a model's name; got none"),
        ({"backend": object(), "model": "tiny"}, "give a backend or a model's name; got both"),
        ({"backend": object(), "cache": True}, "cache is for a model that is named"),
    ],
)
def test_there_is_one_backend_or_one_model(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        adapters.KaLMCompressor(**fields)


def test_a_compressor_of_a_named_model_can_be_copied_and_pickled() -> None:
    compressor = adapters.KaLMCompressor(model="tiny")
    wanted = compressor.compress_documents(RETRIEVED, QUERY)
    for copy in (compressor.model_copy(deep=True), pickle.loads(pickle.dumps(compressor))):
        assert copy.compress_documents(RETRIEVED, QUERY) == wanted
