"""Which languages a corpus is in, and what the setting may name."""

from __future__ import annotations

import pytest

from kalm_cache.languages import (
    LANGUAGES,
    STEMMED,
    STOP_WORDS,
    language_codes,
    languages_of,
    only_english,
    shares_of_languages,
)

GERMAN = ["Die Fähre zur Insel fährt um neun Uhr ab.", "Im Frühling tragen die Bienen Blütenstaub in den Stock."]
ENGLISH = ["The ferry to the island leaves at nine.", "In spring, the bees carry pollen to their hive."]


@pytest.mark.parametrize(
    ("texts", "languages"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        (["Le dernier bateau pour l'île part à neuf heures du soir."], "fr"),
        (["Последний паром на остров уходит в девять часов."], "ru"),
        (["去岛上的最后一班渡轮九点钟开出。"], "zh"),
        (["島への最後のフェリーは九時に出ます。"], "ja"),
        ([*GERMAN, *GERMAN, *ENGLISH], "de,en"),
        ([*ENGLISH * 10, GERMAN[0]], "en"),  # less than a tenth
    ],
)
def test_the_languages_of_a_corpus_are_those_of_a_tenth_of_it_or_more(texts: list[str], languages: str) -> None:
    assert languages_of(texts) == languages


@pytest.mark.parametrize("texts", [[], ["", "  "], ["XJ-900 4GB", "w1 w2 w17"]])
def test_texts_that_say_nothing_are_english(texts: list[str]) -> None:
    assert shares_of_languages(texts) == {}
    assert languages_of(texts) == "en"


def test_short_texts_say_it_together() -> None:
    texts = ["Kaffeemaschine", "Edelstahl", "Lederschuhe", "Holztisch", "aus Eiche", "Kinderfahrrad", "rot und blau"]
    assert shares_of_languages(texts[:3]) == {}
    assert languages_of(texts) == "de"


def test_every_stemmer_is_snowballs_and_every_language_the_detectors() -> None:
    import Stemmer
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    assert set(STEMMED.values()) <= set(Stemmer.algorithms())
    assert set(LanguageIdentifier.from_model_file(MODEL_FILE).labels) >= LANGUAGES
    assert len(STOP_WORDS) == 33


def test_codes_are_read_in_order_and_others_are_named() -> None:
    assert language_codes("ru, en") == ("ru", "en")
    assert language_codes("none") == ()
    with pytest.raises(ValueError, match=r"'german' is no language here; expected auto, none, or some of ar, .*zh"):
        language_codes("en,german")
    with pytest.raises(ValueError, match="twice"):
        language_codes("en,en")


def test_english_models_are_named_with_what_to_use_instead() -> None:
    assert only_english("tiny", "static", "en") == only_english("nano", "my-folder", "zh") == []
    embedder, model = only_english("tiny", "static", "de,en")
    assert "has de: use --embedder" in embedder
    assert "use --model nano" in model
