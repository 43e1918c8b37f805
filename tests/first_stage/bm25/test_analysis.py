from __future__ import annotations

import pytest
from bm25s.stopwords import STOPWORDS_EN

from kalm_cache.first_stage.bm25.analysis import LONG_CHARS, STOP_WORDS, split_words, terms_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vitamin d, in 2 café-bars", ["vitamin", "in", "café", "bars"]),  # single characters are dropped
        ("北京大学 in 2020 年", ["北京", "京大", "大学", "in", "2020", "年"]),  # Han by pairs, a lone one by itself
        ("हिन्दी है।", ["हिन्दी", "है"]),  # vowel signs stay in their word, the danda ends it
        ("", []),
    ],
)
def test_words_of_several_scripts(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_terms_are_lower_cased_without_stop_words_and_stemmed() -> None:
    assert list(terms_of(["The Cats and the RUNNING dogs", "the", ""])) == [["cat", "run", "dog"], [], []]


def test_the_stop_words_are_those_of_bm25s() -> None:
    assert sorted(STOP_WORDS) == sorted(STOPWORDS_EN)


@pytest.mark.parametrize("text", ["The Cats, running. ", "中文文档检索", "北京 has cats、猫とねこ", "a b c 中 x "])
def test_a_long_text_has_the_terms_of_a_short_one_repeated(text: str) -> None:
    long = text * (2 * LONG_CHARS // len(text))
    words = [word for word in split_words(long.lower()) if word not in STOP_WORDS]
    [terms] = terms_of([long])
    assert terms == [term for [term] in map({word: next(terms_of([word])) for word in set(words)}.get, words)]
