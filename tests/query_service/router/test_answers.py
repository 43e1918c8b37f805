"""A router's answers are those of one service over the whole index: ids, order, margins, texts, refusals."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.texts import SENTENCES, long_text

QUERY = "bees and the flowers that they visit"
FLEETING = {"id", "created", "timings_ms", "plan"}


def same(one: Any, other: Any, path: str = "") -> bool:
    """Whether two answers say the same: numbers to 1e-6, and nothing of ids and times that every answer has anew."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = (one.keys() | other.keys()) - (FLEETING if "label" not in one else set())
        return all(same(one.get(name), other.get(name), f"{path}.{name}") for name in names)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*both, path) for both in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6
    return bool(one == other)


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/search", {"query": QUERY}),
    ("/search", {"query": QUERY, "k": 3, "top_n": 0}),
    ("/search", {"query": QUERY, "first_stage": "bm25", "return_documents": False}),
    ("/search", {"query": QUERY, "first_stage": "dense", "k": 7, "chunk_size": 8}),
    ("/search", {"query": QUERY, "first_stage_weight": 2.0, "top_n": 4}),
    ("/search", {"query": "zzzz", "first_stage": "bm25"}),
    ("/search", {"query": "word " * 600}),
    ("/search", {"query": QUERY, "instruction": "Find what is about plants", "k": 5}),
    ("/rerank", {"query": QUERY, "ids": ["s1", "l0", "s2", "ü/北", "empty", "s1"]}),
    ("/rerank", {"query": QUERY, "ids": ["s3", "l1"], "return_documents": True, "return_margin": True, "top_n": 1}),
    ("/rerank", {"query": QUERY, "ids": ["s3", "nowhere", "l1"], "on_missing": "skip", "raw_scores": True}),
    ("/rerank", {"query": QUERY, "ids": ["s3", "nowhere", "l1", "gone"]}),
    ("/rerank", {"query": QUERY, "documents": [SENTENCES[2], "a text of its own", SENTENCES[5]]}),
    (
        "/rerank",
        {"query": QUERY, "documents": [{"id": "s2", "text": SENTENCES[4]}, {"id": "s3", "text": SENTENCES[3]}]},
    ),
    ("/rerank", {"query": QUERY, "texts": [SENTENCES[2], "a text of its own"], "cache": False}),
    ("/rerank", {"query": QUERY, "ids": ["l9", "x"], "documents": [long_text(44, seed=9), "another"], "top_n": 2}),
    ("/rerank", {"query": QUERY, "ids": []}),
    ("/rerank", {"query": QUERY, "ids": ["s1"], "chunk_size": 3}),
    ("/rerank", {"query": QUERY, "ids": ["l9"], "truncate": False}),
    ("/rerank", {"query": QUERY, "ids": ["s1"], "instruction": "word " * 600}),
    ("/v1/rerank", {"query": QUERY, "documents": [SENTENCES[0], "b"], "model": "other"}),
    ("/v2/rerank", {"query": QUERY, "documents": [SENTENCES[0], "b"], "top_n": 1}),
    ("/infinity/rerank", {"query": QUERY, "documents": [SENTENCES[0], "b"], "return_documents": True}),
    ("/score", {"pairs": [{"label": i, "query": f"{QUERY} {i}", "doc_id": f"l{i}"} for i in range(6)]}),
    ("/v1/score", {"text_1": QUERY, "text_2": [SENTENCES[1], "x"]}),
    ("/score", {"queries": ["a", "b"], "documents": [SENTENCES[1], SENTENCES[3]]}),
    ("/explain", {"query": QUERY, "doc_id": "l3"}),
    ("/explain", {"query": QUERY, "doc_id": "nowhere"}),
]


@pytest.mark.parametrize(("path", "body"), ASKED, ids=range(len(ASKED)))
def test_a_router_answers_as_one_service_does(
    router: httpx.Client, whole: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    expected, answer = whole.post(path, json=body), router.post(path, json=body)
    assert answer.status_code == expected.status_code, answer.text
    assert same(answer.json(), expected.json()), (answer.json(), expected.json())
    for name in ("X-Index-Version", "X-Cache-Hits", "X-Truncated", "X-Unused-Fields"):
        assert answer.headers.get(name) == expected.headers.get(name)


def test_a_router_says_of_itself_what_one_service_does(router: httpx.Client, whole: httpx.Client) -> None:
    for path in ("/info", "/v1/models", "/health", "/ready", "/infinity/models"):
        assert router.get(path).json() == whole.get(path).json()
