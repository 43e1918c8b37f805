from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest

from kalm_cache import AsyncClient, Client, KaLMReranker, PassageIndex
from kalm_cache.errors import UsageError
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.adapters.conftest import CORPUS, IDS, QUERY, Sent

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # before haystack is imported: it reads the variable once
haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed")
adapters = pytest.importorskip("kalm_cache.adapters.haystack")

RETRIEVED = [haystack.Document(content=CORPUS[doc_id], meta={"id": doc_id}) for doc_id in IDS]


def test_documents_are_reranked_by_their_ids(index: PassageIndex, client: Client, sent: Sent) -> None:
    expected = index.rerank(QUERY, IDS, top_n=2).results
    for backend in (index, client):
        kept = adapters.KaLMRanker(backend, top_k=2).run(query=QUERY, documents=RETRIEVED)["documents"]
        assert [document.meta["id"] for document in kept] == [hit.doc_id for hit in expected]
        assert [document.score for document in kept] == pytest.approx([hit.score for hit in expected])
    assert [body["ids"] for _, body in sent] == [IDS]
    assert RETRIEVED[0].score is None


def test_an_asynchronous_pipeline_awaits_an_asynchronous_client(async_client: AsyncClient, index: PassageIndex) -> None:
    async def rerank(backend: Any) -> list[str]:
        answer = await adapters.KaLMRanker(backend).run_async(query=QUERY, documents=RETRIEVED, top_k=3)
        return [document.meta["id"] for document in answer["documents"]]

    assert anyio.run(rerank, async_client) == anyio.run(rerank, index)


def test_a_saved_pipeline_reranks_as_the_one_that_was_saved(index_folder: Path, index: PassageIndex) -> None:
    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", adapters.KaLMRanker(index=str(index_folder), top_k=2, id_field="id"))
    loaded = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[adapters.__name__])
    kept = loaded.run({"ranker": {"query": QUERY, "documents": RETRIEVED}})["ranker"]["documents"]
    assert [document.meta["id"] for document in kept] == [
        hit.doc_id for hit in index.rerank(QUERY, IDS, top_n=2).results
    ]
    loaded.get_component("ranker").close()


def test_a_service_is_named_by_its_address_and_its_key_by_a_variable(client: Client) -> None:
    ranker = adapters.KaLMRanker(base_url=client.base_url, min_score=0.0)
    data = ranker.to_dict()
    assert data["init_parameters"]["api_key"] == {
        "type": "env_var",
        "env_vars": ["KALM_CACHE_API_KEY"],
        "strict": False,
    }
    again = adapters.KaLMRanker.from_dict(data)
    assert again.to_dict() == adapters.KaLMRanker(base_url=client.base_url, min_score=0.0).to_dict()
    assert len(again.run(query=QUERY, documents=RETRIEVED)["documents"]) == len(IDS)
    again.close()


def test_texts_are_encoded_by_a_model_that_is_named(mini_folder: Path) -> None:
    kept = adapters.KaLMRanker(model=str(mini_folder)).run(query=QUERY, documents=RETRIEVED)["documents"]
    assert len(kept) == len(IDS)


def test_fields_of_the_meta_are_part_of_the_passage_where_they_are_named(unpooled: KaLMReranker) -> None:
    document = haystack.Document(content="dance in the hive.", meta={"title": "Honey bees", "year": 2020})
    for fields, passage in ((["title"], "Honey bees dance in the hive."), (None, "dance in the hive.")):
        ranker = adapters.KaLMRanker(unpooled, on_missing="encode", meta_fields_to_embed=fields)
        [kept] = ranker.run(query=QUERY, documents=[document])["documents"]
        assert kept.score == pytest.approx(unpooled.rank(QUERY, [passage])[0]["score"])
    with pytest.raises(UsageError, match="expected a list of strings"):
        adapters.KaLMRanker(unpooled, meta_fields_to_embed="title")
    saved = adapters.KaLMRanker(model="tiny", meta_fields_to_embed=["title"]).to_dict()
    assert adapters.KaLMRanker.from_dict(saved).meta_fields_to_embed == ["title"]


def test_a_saved_pipeline_finds_what_the_first_one_encoded(tmp_path: Path) -> None:
    pipeline = haystack.Pipeline()
    ranker = adapters.KaLMRanker(model="tiny", cache=str(tmp_path), cache_gib=0.05, top_k=2)
    pipeline.add_component("ranker", ranker)
    loaded = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=[adapters.__name__])
    kept = []
    for each in (pipeline, loaded):
        found = each.run({"ranker": {"query": QUERY, "documents": RETRIEVED}})["ranker"]["documents"]
        kept.append([document.meta["id"] for document in found])
        if each is loaded:
            counts = each.get_component("ranker")._opened[0].cache.counts
            assert (counts.hits, counts.misses) == (len(IDS), 0)
            assert each.get_component("ranker").to_dict() == ranker.to_dict()
            assert each.get_component("ranker").cache_gib == 0.05
        each.get_component("ranker").close()
    assert kept[0] == kept[1]


def test_a_cache_belongs_to_a_model_and_is_saved_by_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cache is for a model that is named"):
        adapters.KaLMRanker(base_url="http://a", cache="folder")
    assert adapters.KaLMRanker(model="tiny", cache=tmp_path).to_dict()["init_parameters"]["cache"] == str(tmp_path)
    with TextCache(TextCacheOptions(tmp_path, 32 << 20)) as cache, pytest.raises(UsageError, match="name its folder"):
        adapters.KaLMRanker(model="tiny", cache=cache).to_dict()


@pytest.mark.parametrize("named", [{}, {"base_url": "http://a", "index": "b"}])
def test_there_is_one_backend(named: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="give a backend, base_url, index or model"):
        adapters.KaLMRanker(**named)


def test_a_backend_that_is_an_object_cannot_be_saved(index: PassageIndex) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        adapters.KaLMRanker(index).to_dict()


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_top_k_below_1_is_a_value_error_at_init_and_run(index: PassageIndex, top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must be > 0"):
        adapters.KaLMRanker(index, top_k=top_k)
    ranker = adapters.KaLMRanker(index)
    with pytest.raises(ValueError, match="top_k must be > 0"):
        ranker.run(query=QUERY, documents=RETRIEVED, top_k=top_k)
    with pytest.raises(ValueError, match="top_k must be > 0"):
        anyio.run(lambda: ranker.run_async(query=QUERY, documents=[], top_k=top_k))


def test_of_documents_with_one_id_the_best_scored_is_ranked(index: PassageIndex) -> None:
    def document(name: str, doc_id: str, score: float | None) -> Any:
        return haystack.Document(id=name, content=CORPUS[doc_id], meta={"id": doc_id}, score=score)

    given = [document("a", "s0", None), document("b", "s5", 0.2), document("a", "l3", 0.1), document("b", "s0", 0.1)]
    kept = adapters.KaLMRanker(index).run(query=QUERY, documents=given)["documents"]
    assert {one.id: one.meta["id"] for one in kept} == {"a": "l3", "b": "s5"}
    assert len(kept) == 2


def test_a_document_without_content_is_ranked_as_an_empty_one(mini_folder: Path) -> None:
    ranker = adapters.KaLMRanker(model=str(mini_folder))
    given = [haystack.Document(id=name, content=content) for name, content in (("none", None), ("empty", ""))]
    first, second = ranker.run(query=QUERY, documents=given)["documents"]
    assert {first.id, second.id} == {"none", "empty"}
    assert first.score == second.score
    assert ranker.run(query=QUERY, documents=[]) == {"documents": []}
