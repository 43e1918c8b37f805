from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from kalm_cache import AsyncClient, Client, PassageIndex
from kalm_cache.errors import UsageError
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

schema = pytest.importorskip("llama_index.core.schema", reason="llama-index-core is not installed")
adapters = pytest.importorskip("kalm_cache.adapters.llama_index")


def nodes() -> list[Any]:
    return [
        schema.NodeWithScore(node=schema.TextNode(text=CORPUS[doc_id], metadata={"id": doc_id}), score=0.1)
        for doc_id in IDS
    ]


def test_nodes_are_reranked_by_their_ids(index: PassageIndex, client: Client, sent: Sent) -> None:
    expected = index.rerank(QUERY, IDS, top_n=2).results
    for backend in (index, client):
        kept = adapters.KaLMPostprocessor(backend=backend, top_n=2).postprocess_nodes(nodes(), query_str=QUERY)
        assert [hit.node.metadata["id"] for hit in kept] == [hit.doc_id for hit in expected]
        assert [hit.score for hit in kept] == pytest.approx([hit.score for hit in expected])
    assert [body["ids"] for _, body in sent] == [IDS]
    assert not any(text in str(sent) for text in CORPUS.values() if text)


def test_an_asynchronous_query_awaits_an_asynchronous_client(async_client: AsyncClient, index: PassageIndex) -> None:
    async def rerank(backend: Any) -> list[str]:
        given = adapters.KaLMPostprocessor(backend=backend)
        return [hit.node.metadata["id"] for hit in await given.apostprocess_nodes(nodes(), query_str=QUERY)]

    assert anyio.run(rerank, async_client) == anyio.run(rerank, index)


def test_ids_may_be_those_of_the_nodes(index: PassageIndex) -> None:
    given = [schema.NodeWithScore(node=schema.TextNode(text="", id_=doc_id)) for doc_id in IDS]
    kept = adapters.KaLMPostprocessor(backend=index).postprocess_nodes(given, query_str=QUERY)
    assert [hit.node.node_id for hit in kept] == [hit.doc_id for hit in index.rerank(QUERY, IDS).results]


def test_the_score_of_the_retrieval_is_kept_where_it_is_wanted(index: PassageIndex) -> None:
    plain = adapters.KaLMPostprocessor(backend=index).postprocess_nodes(nodes(), query_str=QUERY)
    kept = adapters.KaLMPostprocessor(backend=index, keep_retrieval_score=True).postprocess_nodes(
        nodes(), query_str=QUERY
    )
    assert "retrieval_score" not in plain[0].node.metadata
    assert kept[0].node.metadata["retrieval_score"] == 0.1


def test_a_query_must_be_given(index: PassageIndex) -> None:
    with pytest.raises(UsageError, match="a query is missing"):
        adapters.KaLMPostprocessor(backend=index).postprocess_nodes(nodes())


def test_no_query_is_a_value_error(index: PassageIndex) -> None:
    with pytest.raises(ValueError, match="a query is missing"):
        adapters.KaLMPostprocessor(backend=index).postprocess_nodes(nodes())


def test_metadata_that_is_embedded_is_part_of_the_text_that_is_scored(unpooled: Any) -> None:
    def score(node: Any) -> float:
        [kept] = adapters.KaLMPostprocessor(backend=unpooled).postprocess_nodes(
            [schema.NodeWithScore(node=node)], query_str=QUERY
        )
        return float(kept.score)

    metadata = {"title": "Bees", "secret": "x"}
    node = schema.TextNode(text="They dance.", metadata=metadata, excluded_embed_metadata_keys=["secret"])
    text = node.get_content(schema.MetadataMode.EMBED)
    assert "title: Bees" in text
    assert "secret" not in text
    assert score(node) == pytest.approx(unpooled.predict([(QUERY, text)])[0], abs=1e-6)
    assert score(node) != pytest.approx(unpooled.predict([(QUERY, "They dance.")])[0], abs=1e-6)


def test_a_model_that_is_named_encodes_every_text_once_and_is_saved_by_its_name(tmp_path: Path) -> None:
    given = adapters.KaLMPostprocessor(model="tiny", cache=str(tmp_path), cache_gib=0.05, top_n=2)
    kept = [hit.node.metadata["id"] for hit in given.postprocess_nodes(nodes(), query_str=QUERY)]
    assert len(kept) == 2
    given.close()
    data = given.to_dict()
    assert (data["model"], data["cache"]) == ("tiny", str(tmp_path))
    again = adapters.KaLMPostprocessor.from_dict(data)
    assert [hit.node.metadata["id"] for hit in again.postprocess_nodes(nodes(), query_str=QUERY)] == kept
    assert (again._named.open().cache.counts.hits, again._named.open().cache.counts.misses) == (len(IDS), 0)
    again.close()


def test_there_is_one_backend_or_one_model() -> None:
    with pytest.raises(UsageError, match="give a backend or a model's name; got none"):
        adapters.KaLMPostprocessor()
    with pytest.raises(UsageError, match="cache is for a model that is named"):
        adapters.KaLMPostprocessor(backend=object(), cache="folder")
