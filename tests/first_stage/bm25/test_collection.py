"""BM25 indexes of shards, made one: a document scores as it would in one index of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.first_stage import BM25Index
from kalm_cache.first_stage.multi_index import MultiIndex
from tests.first_stage.bm25.test_bm25_index import random_texts

TEXTS = [*random_texts(90, seed=3), "", "only here \ud800x", "東京都 and w1"]
QUERIES = ["w1 w2 w3", "w5", "only 東京", "w1 here w40", "nothing"]


def folders_in(folder: Path, shards: int) -> list[Path]:
    """Indexes of which each text is in one; the last has none."""
    folders = [folder / str(shard) for shard in range(shards)]
    for shard, path in enumerate(folders):
        BM25Index.build([(n, text) for n, text in enumerate(TEXTS) if n * 7 % 11 % (shards - 1) == shard], path)
    return folders


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_documents_score_in_shards_as_in_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("kalm_cache.first_stage.bm25.collection.BLOCK_POSTINGS", block)
    one, folders = BM25Index.build(enumerate(TEXTS), tmp_path / "one"), folders_in(tmp_path, 4)
    apart = MultiIndex([BM25Index.open(folder) for folder in folders]).search(QUERIES, 50)
    BM25Index.collection(folders).score([folder / "bm25" for folder in folders])
    together = MultiIndex([BM25Index.open(folder) for folder in folders]).search(QUERIES, 50)
    expected = one.search(QUERIES, 50)
    assert [found.scores.tolist() for found in together] == [found.scores.tolist() for found in expected]
    assert [found.ordinals.tolist() for found in together] == [found.ordinals.tolist() for found in expected]
    assert [found.scores.tolist() for found in apart] != [found.scores.tolist() for found in expected]


def test_scores_are_replaced_and_another_name_of_the_file_keeps_the_old_ones(tmp_path: Path) -> None:
    folders = folders_in(tmp_path, 3)
    scores = folders[0] / "bm25/data.npy"
    (tmp_path / "linked.npy").hardlink_to(scores)
    before = scores.read_bytes()
    BM25Index.collection(folders).score([folder / "bm25" for folder in folders])
    assert (tmp_path / "linked.npy").read_bytes() == before != scores.read_bytes()
    again = scores.read_bytes()
    BM25Index.collection(folders).score([folder / "bm25" for folder in folders])
    assert scores.read_bytes() == again


def test_what_is_added_scores_by_the_statistics_of_all_shards(tmp_path: Path) -> None:
    one, folders = BM25Index.build(enumerate(TEXTS), tmp_path / "one"), folders_in(tmp_path, 4)
    added = [(1000, "w1 w2 only unseen"), (1001, "w3 w3")]
    by_one = BM25Index.build(added, tmp_path / "by one", one)
    by_all = BM25Index.build(added, tmp_path / "by all", BM25Index.collection(folders))
    mine = [found.scores.tolist() for found in by_all.search(QUERIES, 9)]
    assert mine == [found.scores.tolist() for found in by_one.search(QUERIES, 9)]
