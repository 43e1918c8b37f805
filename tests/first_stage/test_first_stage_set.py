"""A base and two sets of additions, searched as one, against one index over what is left of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.errors import UsageError
from kalm_cache.first_stage import (
    BM25Index,
    DenseIndex,
    Embedder,
    FirstStage,
    FirstStageSet,
    load_embedder,
    z_score_fusion,
)

BASE = {1: "cat", 2: "dog", 3: "cat dog", 4: "fish", 5: "cat fish dog fish"}
FIRST = {6: "cat", 7: "fish dog"}  # 6 replaces 1
SECOND = {8: "dog dog cat"}  # replaces 7
NONE = np.empty(0, np.int64)


@pytest.fixture
def model(static_folder: Path) -> Embedder:
    return load_embedder(str(static_folder))


def stage(folder: Path, model: Embedder, texts: dict[int, str], base: BM25Index | None = None) -> FirstStage:
    vectors = model.embed_passages(list(texts.values()))
    DenseIndex.build([(np.array(list(texts), np.int64), vectors)], model.dimension, folder)
    BM25Index.build(texts.items(), folder, base)
    return FirstStage.open(folder, model)


@pytest.fixture
def parts(tmp_path: Path, model: Embedder) -> list[tuple[FirstStage, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    base = stage(tmp_path / "base", model, BASE)
    statistics = BM25Index.open(tmp_path / "base")
    return [
        (base, np.array([1, 4])),
        (stage(tmp_path / "first", model, FIRST, statistics), np.array([7])),
        (stage(tmp_path / "second", model, SECOND, statistics), NONE),
    ]


LEFT = {2: "dog", 3: "cat dog", 5: "cat fish dog fish", 6: "cat", 8: "dog dog cat"}


def test_dense_answers_are_those_of_one_index_over_what_is_left(tmp_path: Path, model: Embedder, parts: list) -> None:
    whole, together = stage(tmp_path / "whole", model, LEFT), FirstStageSet(parts)
    for query in ("cat", "dog", "fish", "cat dog fish", ""):
        for k in (1, 3, 10):
            one, other = whole.search(query, k, "dense"), together.search(query, k, "dense")
            assert other.ordinals.tolist() == one.ordinals.tolist()
            np.testing.assert_allclose(other.scores, one.scores, rtol=1e-6)


def test_bm25_scores_compare_across_parts(model: Embedder, parts: list) -> None:
    found = FirstStageSet(parts).search("cat", 10, "bm25")
    # one occurrence each but for length: 6 has one word, 3 two, 8 three, 5 four
    assert found.ordinals.tolist() == [6, 3, 8, 5]
    deleted = parts[0][0].search("cat", 10, "bm25")
    assert found.scores[0] == deleted.scores[deleted.ordinals == 1]  # the text that 6 replaced had the very same


def test_fused_scores_are_those_of_the_whole_lists(parts: list) -> None:
    together = FirstStageSet(parts)
    assert together.modes == ("dense", "bm25", "fused")
    expected = z_score_fusion([together.search("cat", 10, mode) for mode in ("dense", "bm25")], 10)
    fused = together.search("cat", 10, "fused")
    assert fused.ordinals.tolist() == expected.ordinals.tolist()
    assert fused.scores.tolist() == pytest.approx(expected.scores.tolist(), abs=1e-6)


def test_many_queries_give_the_lists_of_single_ones(parts: list) -> None:
    together = FirstStageSet(parts)
    for mode in together.modes:
        queries = ["cat", "dog fish", "", "zebra"]
        lists = [one.ordinals.tolist() for one in together.search_many(queries, 3, mode)]
        assert lists == [together.search(query, 3, mode).ordinals.tolist() for query in queries]
    assert together.search_many([], 3, "fused") == []


def test_a_set_can_lose_more_passages_and_be_part_of_a_set(parts: list) -> None:
    together = FirstStageSet([(FirstStageSet(parts[:2]), np.array([6])), parts[2]])
    assert set(together.modes) == {"dense", "bm25", "fused"}
    for mode in together.modes:
        assert not {1, 4, 6, 7} & set(together.search("cat dog fish", 10, mode).ordinals.tolist())
        assert 8 in together.search("cat dog fish", 10, mode).ordinals


def test_a_mode_is_served_if_every_part_serves_it(tmp_path: Path, model: Embedder, parts: list) -> None:
    DenseIndex.build([(np.array([9]), model.embed_passages(["cat"]))], model.dimension, tmp_path / "dense only")
    together = FirstStageSet([*parts, (FirstStage.open(tmp_path / "dense only", model), NONE)])
    assert together.modes == ("dense",)
    with pytest.raises(UsageError, match=r"available modes: dense"):
        together.search("cat", 3, "bm25")


def test_one_stage_loses_passages_in_every_mode(tmp_path: Path, model: Embedder) -> None:
    left = stage(tmp_path, model, BASE).excluding(np.array([1, 3]))
    assert set(left.modes) == {"dense", "bm25", "fused"}
    for mode in left.modes:
        # vectors: (3 - 1 - 1 + 0, 4 + 2) / 4 has cosine 0.887 with cat's (3, 4), dog's (0, 2) has 0.8
        assert left.search("cat", 1, mode).ordinals.tolist() == [5]
