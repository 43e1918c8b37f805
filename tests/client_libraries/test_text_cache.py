"""The clients that everybody has send the same texts twice, and the service or the process is restarted in between."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kalm_cache.storage.text_cache import upkeep
from tests.client_libraries.conftest import KEY, QUERY, TEXTS
from tests.query_service.conftest import serving_texts

Scores = dict[int, float]


def by_cohere(url: str) -> Scores:
    cohere = pytest.importorskip("cohere", reason="cohere is not installed")
    answer = cohere.ClientV2(KEY, base_url=url).rerank(model="mini", query=QUERY, documents=TEXTS)
    return {one.index: one.relevance_score for one in answer.results}


def by_litellm(url: str) -> Scores:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    answer = litellm.rerank(
        model="infinity/mini", query=QUERY, documents=TEXTS, api_base=f"{url}/infinity/rerank", api_key=KEY
    )
    return {one["index"]: one["relevance_score"] for one in answer.results}


def by_tei(url: str) -> Scores:
    answer = httpx.post(f"{url}/rerank", json={"query": QUERY, "texts": TEXTS, "truncate": True}, timeout=60).json()
    return {one["index"]: one["score"] for one in answer}


def by_haystack(url: str) -> Scores:
    """Haystack's client of Text Embeddings Inference."""
    haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed")
    library = pytest.importorskip(
        "haystack_integrations.components.rankers.huggingface_api", reason="huggingface-api-haystack is not installed"
    )
    documents = [haystack.Document(content=text, meta={"row": row}) for row, text in enumerate(TEXTS)]
    answer = library.HuggingFaceTEIRanker(url=url, token=None).run(query=QUERY, documents=documents)
    return {one.meta["row"]: one.score for one in answer["documents"]}


@pytest.mark.parametrize("ask", [by_cohere, by_litellm, by_tei, by_haystack])
def test_after_a_restart_a_client_gets_the_same_scores_from_the_cache(
    ask: Callable[[str], Scores], mini_folder: Path, tmp_path: Path
) -> None:
    scores, hits = [], []
    for _ in range(2):
        with serving_texts(mini_folder, text_cache=str(tmp_path), served_model_name="mini") as client:
            scores.append(ask(str(client.base_url)))
            hits.append(client.get("/health").json()["text_cache"]["hits"])
            body = {"query": QUERY, "documents": TEXTS}
            results = client.post("/v2/rerank", json=body).json()["results"]
            assert {one["cache"] for one in results} == {"hit"}
    assert hits == [0, len(TEXTS)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


THEIRS = "from sentence_transformers import CrossEncoder\n"
OURS = "from kalm_cache.adapters import KaLMCrossEncoder as CrossEncoder\n"
PROGRAM = f"""{THEIRS}
import json, sys
folder, cache, query, *texts = sys.argv[1:]
model = CrossEncoder(folder, device="cpu", cache=cache)
scores = model.predict([(query, text) for text in texts])
ranked = model.rank(query, texts, return_documents=True)
print(json.dumps([scores.tolist(), [[one["corpus_id"], float(one["score"]), one["text"]] for one in ranked]]))
"""


def test_a_program_for_sentence_transformers_with_one_import_changed_finds_its_texts_when_it_runs_again(
    mini_folder: Path, tmp_path: Path
) -> None:
    cache, runs, entries = tmp_path / "cache", [], []
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM.replace(THEIRS, OURS), mini_folder, cache, QUERY, *TEXTS]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
        entries.append(upkeep.stats(cache).entries)
    assert entries == [len(TEXTS)] * 2
    assert runs[0] == runs[1]  # fp16, and equal to the bit
    scores, ranked = runs[0]
    assert [one[0] for one in ranked] == sorted(range(len(TEXTS)), key=lambda i: -scores[i])
    assert [one[2] for one in ranked] == [TEXTS[one[0]] for one in ranked]
