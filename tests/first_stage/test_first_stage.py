from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from kalm_cache.errors import IndexMismatchError, UsageError
from kalm_cache.first_stage import BM25Index, DenseIndex, Embedder, FirstStage, Mode, load_embedder

TEXTS = {11: "cat", 22: "dog", 33: "cat dog", 44: "fish"}


@pytest.fixture
def model(static_folder: Path) -> Embedder:
    return load_embedder(str(static_folder))


@pytest.fixture
def folder(tmp_path: Path, model: Embedder) -> Path:
    folder = tmp_path / "first_stage"
    vectors = model.embed_passages(list(TEXTS.values()))
    DenseIndex.build([(np.array(list(TEXTS)), vectors)], model.dimension, folder)
    BM25Index.build(TEXTS.items(), folder)
    return folder


def test_each_mode_finds_what_its_index_finds(folder: Path, model: Embedder) -> None:
    stage = FirstStage.open(folder, model)
    assert stage.modes == ("dense", "bm25", "fused")
    # cosines with (0.6, 0.8): cat 1, "cat dog" 0.9839, dog 0.8, fish -0.6
    dense = stage.search("cat", 4, "dense")
    assert dense.ordinals.tolist() == [11, 33, 22, 44]
    assert dense.scores.tolist() == pytest.approx([1, 0.983870, 0.8, -0.6], abs=1e-5)
    assert stage.search("cat", 4, "bm25").ordinals.tolist() == [11, 33]
    fused = stage.search("cat", 3, "fused")
    assert fused.ordinals.tolist() == [11, 33, 22]
    # z-scores of the four cosines: 0.6815, 0.6572, 0.3813, -1.7200; of two BM25 scores, whatever they are: 1, -1
    assert fused.scores.tolist() == pytest.approx([(0.6815 + 1) / 2, (0.6572 - 1) / 2, (0.3813 - 1) / 2], abs=1e-4)


def test_fusion_looks_deeper_than_k(folder: Path, model: Embedder) -> None:
    stage = FirstStage.open(folder, model)
    # dense: dog, cat dog, ...; BM25: fish (the rarer term), dog, cat dog. Lists of one each could not tell them apart
    assert stage.search("dog fish", 1, "dense").ordinals.tolist() == [22]
    assert stage.search("dog fish", 1, "bm25").ordinals.tolist() == [44]
    one, all_of_them = stage.search("dog fish", 1, "fused"), stage.search("dog fish", 4, "fused")
    assert one.ordinals.tolist() == all_of_them.ordinals.tolist()[:1]
    assert one.scores.tolist() == all_of_them.scores.tolist()[:1]


def test_many_queries_give_the_lists_of_single_ones(folder: Path, model: Embedder) -> None:
    stage = FirstStage.open(folder, model)
    assert set(stage.modes) == {"dense", "bm25", "fused"}
    for mode in stage.modes:
        queries = ["cat", "dog fish", "", "zebra"]
        together = [c.ordinals.tolist() for c in stage.search_many(queries, 3, mode)]
        assert together == [stage.search(query, 3, mode).ordinals.tolist() for query in queries]
        assert together[2:] == [[], []]
        assert stage.search_many([], 3, mode) == []


def test_an_index_without_bm25_serves_dense_alone_and_says_so(folder: Path, model: Embedder) -> None:
    (folder / "bm25").rename(folder / "elsewhere")
    stage = FirstStage.open(folder, model)
    assert stage.modes == ("dense",)
    for mode in ("bm25", "fused"):
        with pytest.raises(UsageError, match=r"BM25 index.*available modes: dense"):
            stage.search("cat", 3, mode)


def test_without_an_embedder_bm25_alone_is_served(folder: Path) -> None:
    stage = FirstStage.open(folder, None)
    assert stage.modes == ("bm25",)
    with pytest.raises(UsageError, match=r"dense index.*available modes: bm25"):
        stage.search("cat", 3, "dense")


def test_unknown_modes_and_k_below_one_are_usage_errors(folder: Path, model: Embedder) -> None:
    stage = FirstStage.open(folder, model)
    with pytest.raises(UsageError, match="'sparse'"):
        stage.search("cat", 3, cast(Mode, "sparse"))
    with pytest.raises(UsageError, match="k is 0"):
        stage.search("cat", 0, "dense")


def test_an_embedder_of_another_width_is_refused_at_opening(folder: Path, model: Embedder) -> None:
    DenseIndex.build([], 3, folder)
    with pytest.raises(IndexMismatchError, match=r"3 wide.*2 wide"):
        FirstStage.open(folder, model)


def test_importing_the_package_imports_no_search_library() -> None:
    heavy = "{'faiss', 'model2vec', 'sentence_transformers', 'torch', 'Stemmer'}"
    code = f"import sys, kalm_cache.first_stage; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
