from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage import BM25Index

DOCUMENTS = [(7, "cats chase mice"), (1000, "the cat and the cat sleep"), (2**40, "dogs bark loudly today")]
MEAN_LENGTH = (3 + 3 + 4) / 3  # "the" and "and" are stop words


def lucene(tf: int, df: int, length: int) -> float:
    """Kamphuis et al., ECIR 2020, table 1, "Lucene (accurate)"; N = 3, k1 = 1.2, b = 0.75."""
    idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length / MEAN_LENGTH))


@pytest.mark.parametrize("mmap", [True, False])
def test_scores_follow_the_lucene_formula(tmp_path: Path, mmap: bool) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    found = BM25Index.open(tmp_path, mmap=mmap).search(["cat", "mouse mice cats", "Dog"], k=10)
    assert found[0].numbers.tolist() == [1000, 7]
    assert found[0].scores.tolist() == pytest.approx([lucene(2, 2, 3), lucene(1, 2, 3)], rel=1e-5)
    assert found[1].numbers.tolist() == [7, 1000]
    assert found[1].scores.tolist() == pytest.approx([lucene(1, 1, 3) + lucene(1, 2, 3), lucene(2, 2, 3)], rel=1e-5)
    assert found[2].numbers.tolist() == [2**40]
    assert found[2].scores.tolist() == pytest.approx([lucene(1, 1, 4)], rel=1e-5)
    assert found[0].numbers.dtype == np.dtype(np.int64)
    assert found[0].scores.dtype == np.dtype(np.float32)


def test_queries_without_a_known_term_find_nothing(tmp_path: Path) -> None:
    index = BM25Index.build(DOCUMENTS, tmp_path)
    assert [len(c) for c in index.search(["", "the", "zebra", "?!", "cat"], k=10)] == [0, 0, 0, 0, 2]
    assert index.search([], k=10) == []


@pytest.mark.parametrize("documents", [[], [(4, ""), (9, "the ?!")]])
def test_a_corpus_without_terms_is_an_index_that_finds_nothing(
    tmp_path: Path, documents: list[tuple[int, str]]
) -> None:
    BM25Index.build(documents, tmp_path)
    index = BM25Index.open(tmp_path)
    assert index.ntotal == len(documents)
    assert [len(c) for c in index.search(["cat", ""], k=10)] == [0, 0]


def test_documents_without_terms_keep_the_numbers_of_the_others_right(tmp_path: Path) -> None:
    index = BM25Index.build([(3, ""), (5, "cat"), (8, "the"), (13, "dog")], tmp_path)
    assert [c.numbers.tolist() for c in index.search(["cat", "dog", ""], k=10)] == [[5], [13], []]
    assert index.ntotal == 4


def test_equal_scores_are_cut_at_the_smaller_numbers(tmp_path: Path) -> None:
    index = BM25Index.build([(number, "cat") for number in (50, 40, 30, 20)], tmp_path)
    assert index.search(["cat"], k=2)[0].numbers.tolist() == [20, 30]


def test_texts_are_read_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Text(str):
        def __del__(self) -> None:
            alive.pop()

    def documents() -> Iterator[tuple[int, str]]:
        for number in range(100):
            alive.append(number)
            yield number, Text(f"word{number}")
            assert len(alive) <= 2

    assert BM25Index.build(documents(), tmp_path).ntotal == 100


def test_a_second_build_replaces_the_first_and_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "bm25.building").mkdir()
    (tmp_path / "bm25.building" / "params.index.json").write_text("half a fi")
    BM25Index.build([(1, "cat")], tmp_path)
    BM25Index.build([(2, "cat")], tmp_path)
    assert BM25Index.open(tmp_path).search(["cat"], k=1)[0].numbers.tolist() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["bm25"]


def test_threads_get_the_answers_of_a_single_thread(tmp_path: Path) -> None:
    index = BM25Index.build(((n, f"word{n % 7} word{n % 5}") for n in range(500)), tmp_path)
    queries = [f"word{n % 7}" for n in range(40)]
    expected = [c.numbers.tolist() for c in index.search(queries, 20)]
    with ThreadPoolExecutor(4) as pool:
        assert [c[0].numbers.tolist() for c in pool.map(lambda q: index.search([q], 20), queries)] == expected


def test_an_index_of_another_text_analysis_is_refused(tmp_path: Path) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    (tmp_path / "bm25" / "analysis.json").write_text(json.dumps({"analysis": "klingon-0"}))
    with pytest.raises(IndexMismatchError, match="klingon-0"):
        BM25Index.open(tmp_path)


@pytest.mark.parametrize("name", ["analysis.json", "numbers.npy", "params.index.json", "data.csc.index.npy"])
def test_a_damaged_file_is_a_store_error(tmp_path: Path, name: str) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    (tmp_path / "bm25" / name).write_text("garbage")
    with pytest.raises(StoreError, match="bm25"):
        BM25Index.open(tmp_path)


def test_numbers_of_another_build_are_a_store_error(tmp_path: Path) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    np.save(tmp_path / "bm25" / "numbers.npy", np.arange(2))
    with pytest.raises(StoreError, match="scores 3 documents"):
        BM25Index.open(tmp_path)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BM25Index.build(DOCUMENTS, tmp_path).search(["cat"], k=1)
    assert capfd.readouterr() == ("", "")
