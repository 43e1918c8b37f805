"""POST /explain."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from kalm_cache.settings import load_settings
from tests.indexes import build
from tests.query_service.conftest import serving
from tests.query_service.page.conftest import QUERY, TEXTS


@pytest.mark.parametrize(("chunk_size", "used"), [(None, 2), (2, 2), (16, 16)])
@pytest.mark.parametrize("doc_id", ["emoji", "hive", "hostile"])
def test_the_margin_is_that_of_the_search_and_the_weights_cover_the_text(
    api: httpx.Client, doc_id: str, chunk_size: int | None, used: int
):
    asked = {"query": QUERY, "chunk_size": chunk_size}
    hits = api.post("/search", json=asked | {"top_n": 0}).json()["results"]
    [hit] = [hit for hit in hits if hit["doc_id"] == doc_id]
    explained = api.post("/explain", json=asked | {"doc_id": doc_id}).json()
    assert explained["margin"] == pytest.approx(hit["margin"], abs=1e-4)
    assert explained["score"] == pytest.approx(hit["score"], abs=1e-4)
    assert explained["text"] == TEXTS[doc_id]
    assert explained["chunk_size"] == used
    assert sum(chunk["weight"] for chunk in explained["chunks"]) == pytest.approx(1)
    assert explained["truncated"] is (doc_id == "hive")
    assert (explained["chunks"][-1]["end"] < len(TEXTS[doc_id])) is (doc_id == "hive")


def test_the_passage_may_be_named_by_id_and_is_then_answered_by_both(api: httpx.Client):
    by_id = api.post("/explain", json={"query": QUERY, "id": "emoji"}).json()
    by_doc_id = api.post("/explain", json={"query": QUERY, "doc_id": "emoji"}).json()
    assert by_id.pop("id") == "emoji"
    assert by_id == by_doc_id
    assert by_doc_id["doc_id"] == "emoji"


def test_an_instruction_changes_the_margin(api: httpx.Client):
    asked = {"query": QUERY, "doc_id": "emoji"}
    margins = {
        api.post("/explain", json=asked | {"instruction": one}).json()["margin"] for one in (None, "Find ferries.")
    }
    assert len(margins) == 2


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"doc_id": "nobody"}, 404, "not in the index"),
        ({"chunk_size": 3}, 422, "chunk size 3"),
        ({"doc_id": ""}, 422, "doc_id: String should have at least 1 character"),
        ({"doc_id": None}, 422, "exactly one of `doc_id`, `id`; got none"),
        ({"id": "emoji"}, 422, "exactly one of `doc_id`, `id`; got doc_id and id"),
    ],
)
def test_what_cannot_be_explained_is_refused(api: httpx.Client, change: dict, status: int, words: str):
    answer = api.post("/explain", json={"query": QUERY, "doc_id": "emoji"} | change)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_an_index_without_texts_says_so(tmp_path: Path):
    build(tmp_path, load_settings(device="cpu", dtype="float32", store_text=False), {"a": TEXTS["ferry"]})
    with serving(tmp_path) as client:
        answer = client.post("/explain", json={"query": QUERY, "doc_id": "a"})
    assert answer.status_code == 422
    assert "keeps no texts" in answer.json()["error"]["message"]
