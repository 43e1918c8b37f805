"""Languages of a corpus: what the setting `language` may name, and which ones texts are in. Knows nothing of indexes.

Detection is py3langid's (BSD-3-Clause; 139 languages, restricted to those here; offline, its weights are in the
package). English is told by its function words first: they are a quarter of its running text and few words of any
other language, and to find them costs nothing, where the classifier takes most of a second to load.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

# ISO 639-1 -> Snowball's algorithm
STEMMED = {
    **{"ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english"},
    **{"eo": "esperanto", "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish"},
    **{"fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian"},
    **{"it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pl": "polish"},
    **{"pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil"},
    **{"tr": "turkish"},
}
# Without a stemmer there; Chinese and Japanese are split into pairs of characters
UNSTEMMED = frozenset(
    ("bg", "bn", "he", "hr", "ja", "ko", "lv", "mk", "ms", "sk", "sl", "sq", "th", "uk", "ur", "vi", "zh")
)
LANGUAGES = frozenset(STEMMED) | UNSTEMMED
AUTO, NO_LANGUAGE, ENGLISH = "auto", "none", "en"

# Lucene's: `EnglishAnalyzer.ENGLISH_STOP_WORDS_SET` (Apache-2.0), which bm25s (MIT) ships as `STOPWORDS_EN`
STOP_WORDS = frozenset(
    (
        *("a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"),
        *("of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"),
        *("will", "with"),
    )
)
READ_CHARS = 1000  # of a text: its language shows in fewer
LEAST_SHARE = 0.1  # of the texts, for a language to be one of the corpus's
LEAST_CONFIDENCE = 0.7  # a text below it, as one of names and numbers, says nothing
ENGLISH_SHARE = 0.2  # of a text's words that are function words


def language_codes(setting: str) -> tuple[str, ...]:
    """The codes that a setting such as `de,en` names, in order; none for `none`.

    Raises:
        ValueError: it names something else, or one of them twice.
    """
    codes = () if setting == NO_LANGUAGE else tuple(code.strip() for code in setting.split(","))
    unknown = [code for code in codes if code not in LANGUAGES]
    if unknown or len(set(codes)) < len(codes):
        problem = f"{unknown[0]!r} is no language here" if unknown else "it names a language twice"
        raise ValueError(f"{problem}; expected auto, none, or some of {', '.join(sorted(LANGUAGES))}, with commas")
    return codes


def shares_of_languages(texts: Iterable[str]) -> dict[str, float]:
    """The share of the texts in each language, the most frequent first. Texts that say nothing do not count."""
    counted = Counter(language for text in texts if (language := _language_of(text[:READ_CHARS])) is not None)
    return {language: count / counted.total() for language, count in counted.most_common()}


def languages_of(texts: Sequence[str]) -> str:
    """The languages of a corpus by some of its texts, as the setting names them; of too little text, English."""
    shares = shares_of_languages(texts) or shares_of_languages([" ".join(texts)])
    return ",".join(language for language, share in shares.items() if share >= LEAST_SHARE) or ENGLISH


def only_english(model: str, embedder: str, languages: str) -> list[str]:
    """What of a model and an embedder knows English alone, where a corpus is in another language; and what to use."""
    others = ", ".join(code for code in language_codes(languages) if code != ENGLISH)
    problems = []
    if others and embedder == "static":
        problems.append(
            f"the embedder 'static' is English, and the corpus has {others}: use --embedder "
            "intfloat/multilingual-e5-small (extra sentence-transformers), a folder of minishlab/"
            "potion-multilingual-128M, or search with --first-stage bm25"
        )
    if others and model == "tiny":
        problems.append(f"the model 'tiny' is English, and the corpus has {others}: use --model nano")
    return problems


def _language_of(text: str) -> str | None:
    words = re.findall(r"\w+", text.lower())
    if sum(word in STOP_WORDS for word in words) > ENGLISH_SHARE * len(words):
        return ENGLISH
    language = _classifier().classify(text)[0]
    return None if language == "und" else str(language)


@cache
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE)
    classifier.set_languages(sorted(LANGUAGES))
    return classifier
