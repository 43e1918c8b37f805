"""Dense indexes of shards, made one: they find what one index of all vectors finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm_cache.first_stage import DenseIndex, convert_shards
from kalm_cache.first_stage.candidates import Candidates
from kalm_cache.first_stage.dense import shards as shards_module
from kalm_cache.first_stage.dense.faiss_types import DenseChoice
from kalm_cache.first_stage.multi_index import MultiIndex

RANDOM = np.random.default_rng(11)
ORDINALS = np.sort(RANDOM.choice(2**40, 1200, replace=False)).astype(np.int64)
VECTORS = RANDOM.standard_normal((1200, 16)).astype(np.float32)
QUERIES = RANDOM.standard_normal((6, 16)).astype(np.float32)
HOMES = RANDOM.choice([0, 2, 3], 1200)  # shard 1 has no vector


def exact_shards(folder: Path) -> list[Path]:
    """Four exact indexes, of which each vector is in one."""
    folders = [folder / str(home) for home in range(4)]
    for home, path in enumerate(folders):
        rows = home == HOMES
        DenseIndex.build([(ORDINALS[rows], VECTORS[rows])], 16, path, "flat")
    return folders


def found(candidates: list[Candidates]) -> list[tuple[list[int], list[float]]]:
    return [(one.ordinals.tolist(), one.scores.tolist()) for one in candidates]


@pytest.mark.parametrize("k", [5, 150, 700])
def test_an_ivf_in_shards_finds_what_one_ivf_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(shards_module, "BATCH_ROWS", 500)
    one = DenseIndex.build([(ORDINALS, VECTORS)], 16, tmp_path / "one", "ivf")
    folders = exact_shards(tmp_path)
    convert_shards(folders, "ivf")
    shards = [DenseIndex.open(folder) for folder in folders]
    assert [shard.info for shard in shards] == [one.info.of(int((home == HOMES).sum())) for home in range(4)]
    assert one.info.parameter < 25  # so that not every cluster is searched
    assert found(MultiIndex(shards).search(QUERIES, k)) == found(one.search(QUERIES, k))
    here = ORDINALS[HOMES == 2][:9]
    np.testing.assert_array_equal(shards[2].vectors(here), one.vectors(here))


@pytest.mark.parametrize("choice", ["auto", "flat"])
def test_so_few_vectors_stay_exact(tmp_path: Path, choice: DenseChoice) -> None:
    folders = exact_shards(tmp_path)
    before = [(folder / "dense.faiss").read_bytes() for folder in folders]
    convert_shards(folders, choice)
    assert [(folder / "dense.faiss").read_bytes() for folder in folders] == before


def test_graphs_of_shards_share_the_rounding_and_have_the_recall_that_was_measured(tmp_path: Path) -> None:
    folders = exact_shards(tmp_path)
    convert_shards(folders, "hnsw")
    shards = [DenseIndex.open(folder) for folder in folders]
    assert min(shard.info.recall_at_100 for shard in shards) >= 0.97
    exact = [set(row.argsort()[-10:]) for row in QUERIES @ VECTORS.T]
    for candidates, best in zip(MultiIndex(shards).search(QUERIES, 10), exact, strict=True):
        rows = np.searchsorted(ORDINALS, candidates.ordinals)
        assert len(best & set(rows.tolist())) >= 9
