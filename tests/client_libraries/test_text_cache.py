"""The clients that everybody has send the same texts twice, and the service is restarted in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

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


@pytest.mark.parametrize("ask", [by_cohere, by_litellm, by_tei])
def test_after_a_restart_a_client_gets_the_same_scores_from_the_cache(
    ask: Callable[[str], Scores], mini_folder: Path, tmp_path: Path
) -> None:
    scores, hits = [], []
    for _ in range(2):
        with serving_texts(mini_folder, text_cache=str(tmp_path), served_model_name="mini") as client:
            scores.append(ask(str(client.base_url)))
            hits.append(client.get("/health").json()["text_cache"]["hits"])
    assert hits == [0, len(TEXTS)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
