"""One word in all its spellings, in new indexes and in those of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kalm_cache.first_stage import BM25Index, DenseIndex, load_embedder
from kalm_cache.first_stage.bm25.analysis import UNNORMALISED, terms_of
from kalm_cache.first_stage.bm25.bm25_index import ReusedDocuments
from kalm_cache.first_stage.normalisation import normalised, spellings
from tests.indexes import make_embedder

SPELLINGS = {
    "composed and decomposed": ["Caf\u00e9", "Cafe\u0301", "CAFE\u0301", "cAF\u00c9"],
    "full width": ["\uff23\uff41\uff46\uff45", "cafe"],
    "ligatures": ["\ufb01sh of\ufb01ce", "fish office"],
    "Turkish i": ["\u0130stanbul", "I\u0307stanbul", "\u0131stanbul", "ISTANBUL", "istanbul"],
    "case that is longer": ["Stra\u00dfe", "STRASSE", "stra\u1e9ee"],
    "final sigma": ["\u03bf\u03b4\u03cc\u03c2", "\u039f\u0394\u039f\u0301\u03a3"],
    "order of marks": ["q\u0323\u0307x", "q\u0307\u0323x"],
    "Hangul": ["\ud55c\uad6d", "\u1112\u1161\u11ab\u1100\u116e\u11a8"],
    "half-width kana": ["\uff83\uff7d\uff84", "\u30c6\u30b9\u30c8"],
    "soft hyphens and joiners": ["co\u00adoperate", "co\u200doperate", "\ufeffco\u2060op\u200cerate", "cooperate"],
    "direction marks": ["\u200f\u05e9\u05dc\u05d5\u05dd\u200e", "\u05e9\u05dc\u05d5\u05dd"],
}


@pytest.mark.parametrize("words", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_finds_every_other(words: list[str], tmp_path: Path) -> None:
    index = BM25Index.build([*enumerate(words), (90, "other words"), (91, "\u00e9\u00e9 \u00fc\u00fc")], tmp_path)
    everything = list(range(len(words)))
    assert [sorted(found.ordinals.tolist()) for found in index.search(words, 10)] == [everything] * len(words)


def test_letters_with_and_without_accents_stay_apart(tmp_path: Path) -> None:
    index = BM25Index.build([(1, "caf\u00e9"), (2, "cafe")], tmp_path)
    assert [found.ordinals.tolist() for found in index.search(["cafe\u0301", "cafe"], 5)] == [[1], [2]]


def test_plain_english_is_analysed_as_before() -> None:
    text = "The Bees' 2nd DANCE, quickly: U.S. don't_stop"
    assert list(terms_of([text])) == list(terms_of([text], UNNORMALISED))


def test_ascii_is_normal_and_has_one_spelling() -> None:
    assert normalised("a b\tc\r\n") == "a b\tc\r\n"
    assert spellings("abc") == ["abc"]
    assert spellings("\u00e9") == ["\u00e9", "e\u0301"]


def old_index(folder: Path, texts: dict[int, str]) -> BM25Index:
    """An index as the version before wrote it."""
    return BM25Index.build(texts.items(), folder, analysis=UNNORMALISED)


def test_an_index_of_unnormalised_words_finds_both_forms(tmp_path: Path) -> None:
    texts = {1: "caf\u00e9 noir", 2: "cafe\u0301 noir", 3: "\uff23\uff21\uff26\uff25", 4: "cafe"}
    old_index(tmp_path, texts)
    assert json.loads((tmp_path / "bm25/bm25.json").read_text())["analysis"] == UNNORMALISED.name
    old = BM25Index.open(tmp_path)
    assert not old.normalised
    found = [
        sorted(one.ordinals.tolist()) for one in old.search(["caf\u00e9", "cafe\u0301", "\uff43\uff41\uff46\uff45"], 5)
    ]
    assert found == [[1, 2], [1, 2], [3, 4]]
    assert (
        old.search(["noir"], 5)[0].scores.tolist()
        == BM25Index.build(texts.items(), tmp_path / "new").search(["noir"], 5)[0].scores.tolist()
    )


def test_what_is_taken_from_an_unnormalised_index_stays_so(tmp_path: Path) -> None:
    old = old_index(tmp_path / "old", {1: "cafe\u0301"})
    taken = BM25Index.build([(2, "caf\u00e9")], tmp_path, reused=[ReusedDocuments(old, np.array([1]))])
    assert not taken.normalised
    assert sorted(taken.search(["caf\u00e9"], 5)[0].ordinals.tolist()) == [1, 2]


def test_the_embedder_sees_the_normal_form(tmp_path: Path) -> None:
    model = load_embedder(str(make_embedder(tmp_path, texts=["caf\u00e9", "noir"])))
    vectors = model.embed_passages(["caf\u00e9", "cafe\u0301", "\uff4e\uff4f\uff49\uff52", "no\u00adir", "noir"])
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[2:] == vectors[4]).all()
    assert (model.embed_queries(["cafe\u0301"]) == vectors[:1]).all()


def test_a_dense_index_says_that_its_texts_were_normalised(tmp_path: Path) -> None:
    built = DenseIndex.build([(np.arange(2), np.eye(2, dtype=np.float32))], 2, tmp_path)
    assert built.normalised
    (tmp_path / "dense.json").unlink()  # as an index of the first version
    assert not DenseIndex.open(tmp_path).normalised
