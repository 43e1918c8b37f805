"""Searches among some passages alone: inside the indexes, so that as many are found as there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.first_stage import BM25Index, DenseIndex, FirstStage, Selection
from kalm_cache.first_stage.dense.faiss_types import DenseChoice
from kalm_cache.first_stage.first_stage import FirstStageSet

ROWS, WIDTH = 4000, 16
ORDINALS = np.arange(ROWS, dtype=np.int64) * 3 + 7  # with gaps, as those of an index that was changed


@pytest.fixture(scope="module", params=["flat", "ivf", "hnsw"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DenseIndex:
    kind: DenseChoice = request.param
    vectors = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    return DenseIndex.build([(ORDINALS, vectors)], WIDTH, tmp_path_factory.mktemp("dense"), kind)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
def test_what_is_found_is_the_best_of_what_is_selected(dense: DenseIndex, share: float) -> None:
    rng = np.random.default_rng(1)
    selected = np.sort(rng.choice(ORDINALS, int(ROWS * share), replace=False))
    queries = rng.standard_normal((20, WIDTH)).astype(np.float32)
    products = queries @ dense.vectors(selected).T
    found = dense.selecting(Selection(selected)).search(queries, 50)
    expected = [set(selected[np.argsort(-row)[:50]].tolist()) for row in products]
    hits = sum(len(wanted & set(some.ordinals.tolist())) for wanted, some in zip(expected, found, strict=True))
    assert hits >= 0.99 * sum(map(len, expected))
    assert all(len(some) == min(50, len(selected)) for some in found)


def test_a_selection_of_a_selection_and_of_what_is_not_excluded_is_what_both_say(dense: DenseIndex) -> None:
    query = np.random.default_rng(2).standard_normal((1, WIDTH)).astype(np.float32)
    some = dense.excluding(ORDINALS[:2]).selecting(Selection(ORDINALS[:5])).selecting(Selection(ORDINALS[1:4]))
    assert sorted(some.search(query, 10)[0].ordinals.tolist()) == ORDINALS[2:4].tolist()
    assert len(dense.selecting(Selection(np.empty(0, np.int64))).search(query, 10)[0]) == 0
    assert len(dense.selecting(Selection(np.array([1, 10**6]))).search(query, 10)[0]) == 0  # ordinals of others


def test_bm25_scores_stay_those_of_the_whole_collection(tmp_path: Path) -> None:
    texts = [(ordinal, f"ferry {'ferry ' * place}island") for place, ordinal in enumerate((3, 5, 8, 13))]
    whole = BM25Index.build(texts, tmp_path)
    scores = dict(zip(*(part.tolist() for part in _parts(whole)), strict=True))
    some = whole.excluding(np.array([13])).selecting(Selection(np.array([5, 13, 40])))
    assert dict(zip(*(part.tolist() for part in _parts(some)), strict=True)) == {5: scores[5]}


def test_segments_are_searched_within_one_selection(tmp_path: Path) -> None:
    parts = []
    for name, ordinals in (("a", (1, 2, 3)), ("b", (7, 8))):
        index = BM25Index.build([(ordinal, f"ferry number {ordinal}") for ordinal in ordinals], tmp_path / name)
        parts.append((FirstStage(None, index, None), np.array([2])))
    stages = FirstStageSet(parts).selecting(Selection(np.array([2, 3, 8])))
    assert sorted(stages.search("ferry", 10, "bm25").ordinals.tolist()) == [3, 8]


def _parts(index: BM25Index) -> tuple[np.ndarray, np.ndarray]:
    [found] = index.search(["ferry"], 10)
    return found.ordinals, found.scores
