"""The approximate types, on vectors that have neighbours: 40 groups in 32 dimensions."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.first_stage import DenseIndex
from kalm_cache.first_stage.dense.faiss_types import DenseChoice

RANDOM = np.random.default_rng(11)
COUNT = 4000
APPROXIMATE: list[DenseChoice] = ["ivf", "hnsw"]


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


GROUPS = unit(RANDOM.standard_normal((40, 32)))
VECTORS = unit(GROUPS[RANDOM.integers(0, 40, COUNT)] + 0.15 * RANDOM.standard_normal((COUNT, 32)))
QUERIES = unit(GROUPS[:30] + 0.15 * RANDOM.standard_normal((30, 32)))
NUMBERS = np.arange(COUNT, dtype=np.int64) * 7 + 2**40
EXACT = np.argsort(-(QUERIES @ VECTORS.T), axis=1)  # (30, COUNT)


def build(folder: Path, kind: DenseChoice) -> DenseIndex:
    batches = ((NUMBERS[i : i + 999], VECTORS[i : i + 999]) for i in range(0, COUNT, 999))
    return DenseIndex.build(batches, 32, folder, kind)


@pytest.fixture(scope="module", params=["flat", *APPROXIMATE])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DenseIndex:
    return build(tmp_path_factory.mktemp(request.param), request.param)


def test_the_recall_that_was_promised_is_the_recall_of_other_queries(index: DenseIndex) -> None:
    found = index.search(QUERIES, 100)
    hits = [len(np.intersect1d(one.ordinals, NUMBERS[best[:100]])) for one, best in zip(found, EXACT, strict=True)]
    assert index.info.recall_at_100 >= 0.97
    assert np.mean(hits) / 100 >= 0.95
    for one in found:
        assert (np.diff(one.scores) <= 0).all()


def test_scores_are_inner_products_up_to_eight_bits(index: DenseIndex) -> None:
    for query, one in zip(QUERIES, index.search(QUERIES, 10), strict=True):
        expected = VECTORS[(one.ordinals - 2**40) // 7] @ query
        np.testing.assert_allclose(one.scores, expected, atol=1e-6 if index.exact else 0.01)


def test_without_excluded_passages_as_many_are_found(index: DenseIndex) -> None:
    gone = NUMBERS[np.unique(EXACT[:, :50])]  # the best 50 of every query
    left = index.excluding(gone)
    for one, best in zip(left.search(QUERIES, 20), EXACT, strict=True):
        assert len(one) == 20
        assert not np.isin(one.ordinals, gone).any()
        expected = NUMBERS[best][~np.isin(NUMBERS[best], gone)][:20]
        assert len(np.intersect1d(one.ordinals, expected)) >= (20 if index.exact else 12)
    assert index.search(QUERIES[:1], 1)[0].ordinals.tolist()[0] in gone


def test_exclusions_add_up_and_unknown_numbers_are_none(index: DenseIndex) -> None:
    best = index.search(QUERIES[:1], 3)[0].ordinals
    left = index.excluding(best[:1]).excluding(np.array([5, best[1]]))
    assert left.search(QUERIES[:1], 1)[0].ordinals.tolist() == [best[2]]
    assert left.excluding(NUMBERS).search(QUERIES[:1], 5)[0].ordinals.tolist() == []


def test_threads_with_different_exclusions_do_not_disturb_each_other(index: DenseIndex) -> None:
    stages = [index, index.excluding(NUMBERS[::2]), index.excluding(NUMBERS[1::2])]

    def ordinals(i: int) -> list[int]:
        found: list[int] = stages[i % 3].search(QUERIES[i % 30][None], 20)[0].ordinals.tolist()
        return found

    expected = [ordinals(i) for i in range(90)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ordinals, range(90))) == expected


def test_vectors_come_back_by_number_in_any_order(index: DenseIndex) -> None:
    rows = np.array([3, 3999, 0, 17])
    vectors = index.vectors(NUMBERS[rows])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, VECTORS[rows], atol=0 if index.exact else 0.02)
    assert index.vectors([]).shape == (0, 32)
    with pytest.raises(StoreError, match="1 ordinals"):
        index.vectors([int(NUMBERS[0]), 5])


def test_batches_are_what_a_build_takes(index: DenseIndex, tmp_path: Path) -> None:
    again = DenseIndex.build(index.batches(), 32, tmp_path, "flat")
    assert again.ntotal == COUNT
    assert np.array_equal(again.vectors(NUMBERS), index.vectors(NUMBERS))


@pytest.mark.parametrize("kind", ["flat", *APPROXIMATE])
def test_the_same_vectors_make_the_same_bytes(tmp_path: Path, kind: DenseChoice) -> None:
    for name in "ab":
        build(tmp_path / name, kind)
    for name in ("dense.faiss", "dense.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_was_measured_lies_beside_the_index(tmp_path: Path) -> None:
    built = build(tmp_path, "ivf")
    said = json.loads((tmp_path / "dense.json").read_text())
    assert said == {
        "type": "ivf",
        "passages": COUNT,
        "parameter": built.info.parameter,
        "recall_at_100": built.info.recall_at_100,
        "queries": 256,
        "texts": "nfkc-1",
    }
    assert DenseIndex.open(tmp_path).info == built.info
    assert not built.exact


@pytest.mark.parametrize("count", [0, 1, 3, 60])
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_very_small_collections_are_served_too(
    tmp_path: Path, kind: DenseChoice, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    index = DenseIndex.build([(NUMBERS[:count], VECTORS[:count])], 32, tmp_path, kind)
    assert len(index.search(QUERIES[:1], 100)[0]) == count
    assert capfd.readouterr() == ("", "")


def test_zero_vectors_among_the_passages_do_no_harm(tmp_path: Path) -> None:
    vectors = np.where(np.arange(COUNT)[:, None] % 3 == 0, 0, VECTORS).astype(np.float32)
    index = DenseIndex.build([(NUMBERS, vectors)], 32, tmp_path, "ivf")
    best = [ordinal for ordinal in NUMBERS[EXACT[0]].tolist() if (ordinal - 2**40) // 7 % 3][:5]
    assert len(set(index.search(QUERIES[:1], 10)[0].ordinals.tolist()) & set(best)) >= 4


def test_an_unknown_type_is_a_usage_error_before_any_vector_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'annoy'.*auto, flat, hnsw, ivf"):
        DenseIndex.build((1 / 0 for _ in "x"), 32, tmp_path, "annoy")  # type: ignore[arg-type, misc]


def test_a_description_that_is_missing_or_of_another_index_is_a_store_error(tmp_path: Path) -> None:
    build(tmp_path / "ivf", "ivf")
    build(tmp_path / "flat", "flat")
    (tmp_path / "flat" / "dense.json").replace(tmp_path / "ivf" / "dense.json")
    with pytest.raises(StoreError, match=r"IndexIVFScalarQuantizer.*says flat"):
        DenseIndex.open(tmp_path / "ivf")
    (tmp_path / "ivf" / "dense.json").unlink()
    with pytest.raises(StoreError, match=r"dense\.json"):
        DenseIndex.open(tmp_path / "ivf")
    assert DenseIndex.open(tmp_path / "flat").info.type == "flat"  # as the first version left it


def test_vectors_of_another_width_are_refused_by_the_build(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 ordinals.*\(2, 3\)"):
        DenseIndex.build([(np.arange(2), np.ones((2, 3), np.float32))], 4, tmp_path)
    assert list(tmp_path.iterdir()) == []
