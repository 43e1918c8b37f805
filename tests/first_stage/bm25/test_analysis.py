from __future__ import annotations

import pytest
from bm25s.stopwords import STOPWORDS_EN

from kalm_cache.errors import IndexMismatchError
from kalm_cache.first_stage.bm25.analysis import LONG_CHARS, STOP_WORDS, UNNORMALISED, Analysis, split_words, terms_of


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


@pytest.mark.parametrize(
    ("languages", "stemmers"),
    [
        ("en", ("en",)),
        ("de", ("de",)),
        ("de,en", ("de", "en")),
        ("ru", ("ru", "en")),  # of another script: English words are stemmed, too
        ("zh", ("en",)),  # no stemmer: as earlier versions did
        ("vi", ()),  # no stemmer, and its words look like English ones
        ("none", ()),
    ],
)
def test_each_language_has_its_stemmers(languages: str, stemmers: tuple[str, ...]) -> None:
    assert Analysis.of(languages).stemmers == stemmers


@pytest.mark.parametrize("languages", ["en", "de,en", "ru", "none"])
@pytest.mark.parametrize("folded", [False, True])
def test_an_analysis_is_found_by_its_name(languages: str, folded: bool) -> None:
    analysis = Analysis.of(languages, folded=folded)
    assert Analysis.named(analysis.name) == analysis


def test_the_names_of_earlier_versions_are_those_of_english() -> None:
    assert Analysis.of("en").name == Analysis.of("zh").name == "english-snowball-cjk-bigrams-2"
    assert UNNORMALISED.name == "english-snowball-cjk-bigrams-1"
    with pytest.raises(IndexMismatchError, match="snowball-xx-cjk"):
        Analysis.named("snowball-xx-cjk-bigrams-2")


@pytest.mark.parametrize(
    ("languages", "query", "text"),
    [
        ("de", "Häuser", "ein Haus"),
        ("fr", "chevaux", "cheval"),
        ("fr", "or", "une bague en or"),  # a stop word of English, and gold
        ("ru", "книги", "книга"),
        ("ru", "running", "runs"),
        ("ar", "الكتاب", "كتاب"),
        ("de,en", "running Häuser", "runs Haus"),
    ],
)
def test_a_word_finds_its_other_forms_in_its_language(languages: str, query: str, text: str) -> None:
    [wanted, found] = map(set, terms_of([query, text], Analysis.of(languages)))
    assert wanted
    assert wanted <= found


@pytest.mark.parametrize(
    ("word", "folded"),
    [("Crème brûlée", "creme brulee"), ("Łódź", "lodz"), ("Cafe\u0301", "cafe"), ("Ærø", "aero"), ("ガス", "ガス")],
)
def test_folded_words_have_no_diacritics(word: str, folded: str) -> None:
    plain, analysis = Analysis.of("none"), Analysis.of("none", folded=True)
    assert list(terms_of([word], analysis)) == list(terms_of([folded], analysis))
    assert (list(terms_of([word], plain)) == list(terms_of([folded], plain))) == (word == folded)
