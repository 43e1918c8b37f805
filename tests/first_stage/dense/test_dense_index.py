from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage import DenseIndex
from kalm_cache.first_stage.dense.faiss_layout import check_length

RANDOM = np.random.default_rng(7)
NUMBERS = np.sort(RANDOM.choice(2**40, 300, replace=False)).astype(np.int64)  # gaps, beyond 32 bits
VECTORS = RANDOM.standard_normal((300, 16)).astype(np.float32)
QUERIES = RANDOM.standard_normal((5, 16)).astype(np.float32)


@pytest.fixture
def index(tmp_path: Path) -> DenseIndex:
    DenseIndex.build([(NUMBERS[i : i + 128], VECTORS[i : i + 128]) for i in range(0, 300, 128)], 16, tmp_path)
    return DenseIndex.open(tmp_path)


def test_search_finds_the_largest_inner_products_that_numpy_finds(index: DenseIndex) -> None:
    products = QUERIES @ VECTORS.T  # (5, 300)
    found = index.search(QUERIES, 10)
    assert len(found) == 5
    for row, candidates in zip(products, found, strict=True):
        order = np.argsort(-row)[:10]
        assert candidates.ordinals.tolist() == NUMBERS[order].tolist()
        np.testing.assert_allclose(candidates.scores, row[order], rtol=1e-5)


def test_large_batches_of_queries_find_what_single_queries_find(index: DenseIndex) -> None:
    many = RANDOM.standard_normal((50, 16)).astype(np.float32)  # above 20, FAISS takes its BLAS path
    for together, query in zip(index.search(many, 10), many, strict=True):
        assert together.ordinals.tolist() == index.search(query[None], 10)[0].ordinals.tolist()


def test_threads_get_the_answers_of_a_single_thread(index: DenseIndex) -> None:
    expected = [c.ordinals.tolist() for c in index.search(QUERIES, 10)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: index.search(QUERIES[i % 5][None], 10)[0].ordinals.tolist(), range(40)))
    assert answers == [expected[i % 5] for i in range(40)]


def test_k_above_the_number_of_passages_gives_all_of_them(index: DenseIndex) -> None:
    assert sorted(index.search(QUERIES[:1], 1000)[0].ordinals.tolist()) == NUMBERS.tolist()
    assert index.ntotal == 300


def test_equal_scores_are_ordered_by_smaller_number(tmp_path: Path) -> None:
    ordinals = np.array([30, 10, 20], np.int64)
    index = DenseIndex.build([(ordinals, np.ones((3, 2), np.float32))], 2, tmp_path)
    assert index.search(np.ones((1, 2), np.float32), 3)[0].ordinals.tolist() == [10, 20, 30]


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    DenseIndex.build([], 16, tmp_path)
    index = DenseIndex.open(tmp_path)
    assert index.ntotal == 0
    assert [len(c) for c in index.search(QUERIES, 10)] == [0] * 5


def test_a_zero_query_vector_finds_nothing_and_no_queries_give_no_lists(index: DenseIndex) -> None:
    assert [len(c) for c in index.search(np.stack([np.zeros(16, np.float32), QUERIES[0]]), 3)] == [0, 3]
    assert index.search(np.empty((0, 16), np.float32), 3) == []


def test_vectors_of_another_width_are_refused(index: DenseIndex) -> None:
    with pytest.raises(IndexMismatchError, match=r"\(1, 8\).*\(n, 16\)"):
        index.search(np.ones((1, 8), np.float32), 3)


def test_a_number_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    batch = (np.array([5], np.int64), np.ones((1, 2), np.float32))
    with pytest.raises(StoreError, match="1 of 2"):
        DenseIndex.build([batch, batch], 2, tmp_path)
    assert not DenseIndex.exists(tmp_path)


def test_a_missing_and_a_damaged_file_are_store_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"dense\.faiss"):
        DenseIndex.open(tmp_path)
    DenseIndex.build([(NUMBERS, VECTORS)], 16, tmp_path)
    path = tmp_path / "dense.faiss"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StoreError, match=r"dense\.faiss"):
        DenseIndex.open(tmp_path)


def test_a_build_leaves_two_files_and_replaces_the_old_ones(tmp_path: Path) -> None:
    DenseIndex.build([], 16, tmp_path)
    DenseIndex.build([(NUMBERS, VECTORS)], 16, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.faiss", "dense.json"]
    assert DenseIndex.open(tmp_path).ntotal == 300


@pytest.mark.parametrize("order", ["import torch, faiss", "import faiss, torch"])
def test_torch_and_faiss_work_in_either_import_order(order: str) -> None:
    code = f"""{order}
import numpy as np, tempfile
from pathlib import Path
from kalm_cache.first_stage import DenseIndex
from kalm_cache.first_stage.dense.faiss_layout import check_length
x = np.eye(64, dtype=np.float32)
index = DenseIndex.build([(np.arange(64), x)], 64, Path(tempfile.mkdtemp()))
assert (torch.from_numpy(x) @ torch.ones(64, 64)).sum() == 64 * 64
assert [c.ordinals[0] for c in index.search(x, 1)] == list(range(64))
assert (torch.ones(64, 64) @ torch.ones(64, 64)).max() == 64
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dense_index", ["flat", "ivf", "hnsw"])
def test_a_file_that_ends_before_what_it_promises_never_reaches_faiss(tmp_path: Path, dense_index: str) -> None:
    DenseIndex.build([(NUMBERS, VECTORS)], 16, tmp_path, dense_index)  # type: ignore[arg-type]
    path = tmp_path / "dense.faiss"
    whole = path.read_bytes()
    check_length(path)
    for size in (*range(1, 500), *range(500, len(whole), 997), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"says that it holds more|where FAISS has|of a kind"):
            check_length(path)


def test_of_passages_that_score_the_same_those_with_the_lowest_ordinals_are_found(tmp_path: Path) -> None:
    vectors = np.repeat(VECTORS[:30], 10, axis=0)  # ten of each
    index = DenseIndex.build([(NUMBERS, vectors)], 16, tmp_path)
    order = np.argsort(-np.repeat(QUERIES @ VECTORS[:30].T, 10, axis=1), axis=1, kind="stable")
    for k in (1, 7, 104):  # in the middle of ten; above 100, FAISS takes another way
        found = [query.ordinals.tolist() for query in index.search(QUERIES, k)]
        assert found == [NUMBERS[best[:k]].tolist() for best in order]
