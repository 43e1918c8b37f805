from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bm25s
import numpy as np
import pytest

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.first_stage import BM25Index, ReusedDocuments

DOCUMENTS = [(7, "cats chase mice"), (1000, "the cat and the cat sleep"), (2**40, "dogs bark loudly today")]
FILES = [
    *("bm25.json", "data.npy", "indices.npy", "indptr.npy", "lengths.npy"),
    *("numbers.npy", "term_ends.npy", "terms.npy", "times.npy"),
]
MEAN_LENGTH = (3 + 3 + 4) / 3  # "the" and "and" are stop words


def lucene(tf: int, df: int, length: int) -> float:
    """Kamphuis et al., ECIR 2020, table 1, "Lucene (accurate)"; N = 3, k1 = 1.2, b = 0.75."""
    idf = math.log(1 + (3 - df + 0.5) / (df + 0.5))
    return idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * length / MEAN_LENGTH))


@pytest.mark.parametrize("mmap", [True, False])
def test_scores_follow_the_lucene_formula(tmp_path: Path, mmap: bool) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    found = BM25Index.open(tmp_path, mmap=mmap).search(["cat", "mouse mice cats", "Dog"], k=10)
    assert found[0].ordinals.tolist() == [1000, 7]
    assert found[0].scores.tolist() == pytest.approx([lucene(2, 2, 3), lucene(1, 2, 3)], rel=1e-5)
    assert found[1].ordinals.tolist() == [7, 1000]
    assert found[1].scores.tolist() == pytest.approx([lucene(1, 1, 3) + lucene(1, 2, 3), lucene(2, 2, 3)], rel=1e-5)
    assert found[2].ordinals.tolist() == [2**40]
    assert found[2].scores.tolist() == pytest.approx([lucene(1, 1, 4)], rel=1e-5)
    assert found[0].ordinals.dtype == np.dtype(np.int64)
    assert found[0].scores.dtype == np.dtype(np.float32)


def test_of_a_query_the_first_terms_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = BM25Index.build(DOCUMENTS, tmp_path)
    monkeypatch.setattr("kalm_cache.first_stage.bm25.bm25_index.MAX_QUERY_TERMS", 2)
    assert [len(found) for found in index.search(["zebra cat", "zebra zebra cat"], k=10)] == [2, 0]


def test_one_document_of_more_terms_than_a_block_has_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [*DOCUMENTS, (2**41, "cat dog cat " * 40), (2**42, "cat")]
    expected = BM25Index.build(documents, tmp_path / "a").search(["cat", "dog"], k=10)
    monkeypatch.setattr("kalm_cache.first_stage.bm25.postings.BLOCK_TOKENS", 100)
    found = BM25Index.build(documents, tmp_path / "b").search(["cat", "dog"], k=10)
    lists = [[(one.ordinals.tolist(), one.scores.tolist()) for one in each] for each in (found, expected)]
    assert lists[0] == lists[1]
    assert len(lists[0]) == 2


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
    assert [c.ordinals.tolist() for c in index.search(["cat", "dog", ""], k=10)] == [[5], [13], []]
    assert index.ntotal == 4


def test_equal_scores_are_cut_at_the_smaller_numbers(tmp_path: Path) -> None:
    index = BM25Index.build([(ordinal, "cat") for ordinal in (50, 40, 30, 20)], tmp_path)
    assert index.search(["cat"], k=2)[0].ordinals.tolist() == [20, 30]


def test_texts_are_read_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Text(str):
        def __del__(self) -> None:
            alive.pop()

    def documents() -> Iterator[tuple[int, str]]:
        for ordinal in range(100):
            alive.append(ordinal)
            yield ordinal, Text(f"word{ordinal}")
            assert len(alive) <= 2

    assert BM25Index.build(documents(), tmp_path).ntotal == 100


def test_a_second_build_replaces_the_first_and_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "bm25.building").mkdir()
    (tmp_path / "bm25.building" / "indptr.npy").write_text("half a fi")
    BM25Index.build([(1, "cat")], tmp_path)
    BM25Index.build([(2, "cat")], tmp_path)
    assert BM25Index.open(tmp_path).search(["cat"], k=1)[0].ordinals.tolist() == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["bm25"]


def test_threads_get_the_answers_of_a_single_thread(tmp_path: Path) -> None:
    index = BM25Index.build(((n, f"word{n % 7} word{n % 5}") for n in range(500)), tmp_path)
    queries = [f"word{n % 7}" for n in range(40)]
    expected = [c.ordinals.tolist() for c in index.search(queries, 20)]
    with ThreadPoolExecutor(4) as pool:
        assert [c[0].ordinals.tolist() for c in pool.map(lambda q: index.search([q], 20), queries)] == expected


def test_an_index_of_another_text_analysis_is_refused(tmp_path: Path) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    (tmp_path / "bm25" / "bm25.json").write_text(json.dumps({"analysis": "klingon-0"}))
    with pytest.raises(IndexMismatchError, match="klingon-0"):
        BM25Index.open(tmp_path)


@pytest.mark.parametrize("name", FILES)
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


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_one_of_another_build_are_store_errors(tmp_path: Path, name: str) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    other = BM25Index.build([(1, "some more words than there were")], tmp_path / "other")
    assert other.ntotal == 1
    (tmp_path / "other" / "bm25" / name).replace(tmp_path / "bm25" / name)
    with pytest.raises(StoreError, match="bm25"):
        BM25Index.open(tmp_path)
    (tmp_path / "bm25" / name).unlink()
    with pytest.raises(StoreError, match=name):
        BM25Index.open(tmp_path)


def test_postings_of_documents_that_are_not_there_are_a_store_error_and_not_a_crash(tmp_path: Path) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    indices = np.load(tmp_path / "bm25" / "indices.npy")
    np.save(tmp_path / "bm25" / "indices.npy", indices + 1_000_000)
    with pytest.raises(StoreError, match="damaged"):
        BM25Index.open(tmp_path).search(["cat"], k=1)


def test_an_index_of_the_first_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "bm25").mkdir()
    (tmp_path / "bm25" / "params.index.json").write_text("{}")
    with pytest.raises(IndexMismatchError, match="index the corpus again"):
        BM25Index.open(tmp_path)


@pytest.mark.parametrize("block_tokens", [1, 50, 1 << 20])
def test_scores_are_those_of_bm25s_however_many_blocks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_tokens: int
) -> None:
    monkeypatch.setattr("kalm_cache.first_stage.bm25.postings.BLOCK_TOKENS", block_tokens)
    random = np.random.default_rng(3)
    texts = [" ".join(f"w{w}" for w in random.zipf(1.5, random.integers(0, 30))) for _ in range(200)]
    index = BM25Index.build(((1000 + i, text) for i, text in enumerate(texts)), tmp_path)
    reference = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    reference.index([text.split() for text in texts], show_progress=False)
    for query in ("w1", "w2 w3", "w1 w1 w7", "w4 nothing w5"):
        expected = reference.get_scores(query.split())
        found = index.search([query], k=200)[0]
        assert sorted(found.ordinals.tolist()) == (1000 + np.flatnonzero(expected)).tolist()
        np.testing.assert_allclose(found.scores, expected[found.ordinals - 1000], rtol=1e-5)


def test_the_k_best_are_the_first_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = BM25Index.build(((n, "cat " * (n % 5) + "dog " * (n % 7)) for n in range(200)), tmp_path)
    everything = index.search(["cat dog"], k=1000)[0].ordinals.tolist()
    assert len(everything) == 200 - len(range(0, 200, 35))
    monkeypatch.setattr("kalm_cache.first_stage.bm25.bm25_index.RUN_ROWS", 8)
    for k in (1, 7, 24, 25, 26, 100, len(everything), 200):
        assert index.search(["cat dog"], k)[0].ordinals.tolist() == everything[:k]


def test_excluded_documents_make_room_for_the_next_best(tmp_path: Path) -> None:
    index = BM25Index.build([(ordinal, "cat") for ordinal in (50, 40, 30, 20)], tmp_path)
    left = index.excluding(np.array([20, 40, 12345]))
    assert left.search(["cat"], k=2)[0].ordinals.tolist() == [30, 50]
    assert left.excluding(np.array([30])).search(["cat"], k=2)[0].ordinals.tolist() == [50]
    assert index.search(["cat"], k=2)[0].ordinals.tolist() == [20, 30]
    assert index.excluding(np.array([20, 30, 40, 50])).search(["cat"], k=2)[0].ordinals.tolist() == []


def test_with_the_statistics_of_another_index_a_text_has_the_score_that_it_has_there(tmp_path: Path) -> None:
    base = BM25Index.build(DOCUMENTS, tmp_path / "base")
    delta = BM25Index.build([(5000, "cats chase mice"), (5001, "zebra cat")], tmp_path / "delta", base)
    there, here = base.search(["cat mouse mice"], 10)[0], delta.search(["cat mouse mice"], 10)[0]
    assert there.scores[there.ordinals == 7] == here.scores[here.ordinals == 5000]
    # zebra is in no document of the base and in one of the delta; lengths are compared with the base's mean
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    expected = idf / (1 + 1.2 * (1 - 0.75 + 0.75 * 2 / MEAN_LENGTH))
    assert delta.search(["zebra"], 10)[0].scores.tolist() == pytest.approx([expected], rel=1e-5)


def test_the_statistics_of_an_empty_index_are_the_own_ones(tmp_path: Path) -> None:
    empty = BM25Index.build([], tmp_path / "base")
    alone, added = BM25Index.build(DOCUMENTS, tmp_path / "a"), BM25Index.build(DOCUMENTS, tmp_path / "b", empty)
    assert added.search(["cat"], 5)[0].scores.tolist() == alone.search(["cat"], 5)[0].scores.tolist()


def test_terms_of_any_script_and_broken_surrogates_are_found(tmp_path: Path) -> None:
    texts = {1: "東京都", 2: "straße émigré", 3: "\ud800x broken", 4: "नमस्ते दुनिया"}
    index = BM25Index.build(texts.items(), tmp_path)
    for ordinal, query in {1: "東京", 2: "émigré", 3: "broken", 4: "दुनिया"}.items():
        assert index.search([query], 5)[0].ordinals.tolist() == [ordinal]


def test_the_same_texts_make_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        BM25Index.build(DOCUMENTS, tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a/bm25" / name).read_bytes() == (tmp_path / "b/bm25" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a/bm25").iterdir()) == FILES


def random_texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in random.zipf(1.5, random.integers(0, 30))) for _ in range(count)]


@pytest.mark.parametrize(("at_a_time", "block_tokens"), [(1, 1), (7, 50), (1 << 20, 1 << 20)])
def test_documents_taken_from_other_indexes_make_the_bytes_that_their_texts_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_time: int, block_tokens: int
) -> None:
    monkeypatch.setattr("kalm_cache.first_stage.bm25.bm25_files.BLOCK_POSTINGS", at_a_time)
    monkeypatch.setattr("kalm_cache.first_stage.bm25.postings.BLOCK_TOKENS", block_tokens)
    texts = dict(enumerate([*random_texts(60, seed=7), "nur hier \ud800x " * 300, "", "東京都"], start=100))
    base = BM25Index.build(((n, texts[n]) for n in range(100, 140)), tmp_path / "base")
    delta = BM25Index.build(((n, texts[n]) for n in range(140, 163)), tmp_path / "delta", statistics_of=base)
    kept = [n for n in range(100, 163) if n % 3]
    added = {500: "new words and w1 w2", 501: texts[100]}
    reused = [ReusedDocuments(index, np.array([n for n in kept if n in index.ordinals])) for index in (base, delta)]
    merged = BM25Index.build(added.items(), tmp_path / "merged", reused=reused)
    rebuilt = BM25Index.build([*((n, texts[n]) for n in kept), *added.items()], tmp_path / "rebuilt")
    assert merged.ordinals.tolist() == rebuilt.ordinals.tolist()
    for name in FILES:
        assert (tmp_path / "merged/bm25" / name).read_bytes() == (tmp_path / "rebuilt/bm25" / name).read_bytes(), name


def test_terms_of_documents_that_are_not_taken_are_gone(tmp_path: Path) -> None:
    index = BM25Index.build([(1, "cat dog"), (2, "cat")], tmp_path / "a")
    left = BM25Index.build([], tmp_path / "b", reused=[ReusedDocuments(index, np.array([2]))])
    assert b"dog" not in (tmp_path / "b/bm25/terms.npy").read_bytes()
    assert left.search(["dog", "cat"], 5)[1].ordinals.tolist() == [2]
    nothing = BM25Index.build([], tmp_path / "c", reused=[ReusedDocuments(index, np.array([], np.int64))])
    assert nothing.ntotal == 0


def test_a_document_that_is_not_there_cannot_be_taken(tmp_path: Path) -> None:
    index = BM25Index.build(DOCUMENTS, tmp_path / "a")
    with pytest.raises(StoreError, match=r"not in the index, such as \[8\]"):
        BM25Index.build([], tmp_path / "b", reused=[ReusedDocuments(index, np.array([7, 8]))])


def test_an_index_without_counts_is_searched_and_nothing_is_taken_from_it(tmp_path: Path) -> None:
    BM25Index.build(DOCUMENTS, tmp_path)
    for name in ("times.npy", "lengths.npy"):
        (tmp_path / "bm25" / name).unlink()
    old = BM25Index.open(tmp_path)
    assert not old.has_counts
    assert old.search(["cat"], 5)[0].ordinals.tolist() == [1000, 7]
    with pytest.raises(ValueError, match="earlier version"):
        BM25Index.build([], tmp_path / "b", reused=[ReusedDocuments(old, np.array([7]))])


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BM25Index.build(DOCUMENTS, tmp_path).search(["cat"], k=1)
    assert capfd.readouterr() == ("", "")
