"""POST /explain."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from kalm_cache.settings import load_settings
from tests.indexes import build
from tests.query_service.conftest import serving
from tests.query_service.page.conftest import QUERY, TEXTS


@pytest.mark.parametrize("chunk_size", [None, 2, 16])
def test_the_margin_is_that_of_the_search_and_the_weights_cover_the_text(api: httpx.Client, chunk_size: int | None):
    asked = {"query": QUERY, "chunk_size": chunk_size}
    hits = api.post("/search", json=asked | {"top_n": 0}).json()["results"]
    found = {hit["doc_id"]: hit for hit in hits}
    for doc_id in ("emoji", "hive", "hostile"):
        told = api.post("/explain", json=asked | {"id": doc_id}).json()
        assert told["margin"] == pytest.approx(found[doc_id]["margin"], abs=1e-4)
        assert told["score"] == pytest.approx(found[doc_id]["score"], abs=1e-4)
        assert told["text"] == TEXTS[doc_id]
        assert told["chunk_size"] == chunk_size or 2
        assert sum(chunk["weight"] for chunk in told["chunks"]) == pytest.approx(1)
        assert told["truncated"] is (doc_id == "hive")
        assert (told["chunks"][-1]["end"] < len(TEXTS[doc_id])) is (doc_id == "hive")


def test_an_instruction_changes_the_margin(api: httpx.Client):
    asked = {"query": QUERY, "id": "emoji"}
    margins = {
        api.post("/explain", json=asked | {"instruction": one}).json()["margin"] for one in (None, "Find ferries.")
    }
    assert len(margins) == 2


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [({"id": "nobody"}, 404, "not in the index"), ({"chunk_size": 3}, 422, "chunk size 3"), ({"id": ""}, 422, "id")],
)
def test_what_cannot_be_explained_is_refused(api: httpx.Client, change: dict, status: int, words: str):
    answer = api.post("/explain", json={"query": QUERY, "id": "emoji"} | change)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_an_index_without_texts_says_so(tmp_path: Path):
    build(tmp_path, load_settings(device="cpu", dtype="float32", store_text=False), {"a": TEXTS["ferry"]})
    with serving(tmp_path) as client:
        answer = client.post("/explain", json={"query": QUERY, "id": "a"})
    assert answer.status_code == 422
    assert "keeps no texts" in answer.json()["error"]["message"]
