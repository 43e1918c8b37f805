"""One normal form of text for the first stage, for passages and queries alike. Knows nothing of words or vectors.

NFKC (Unicode Standard Annex #15): composed and decomposed letters, full-width forms, ligatures and Hangul jamo become
one spelling. What is not seen goes: joiners, soft hyphens, direction marks, variation selectors (Default_Ignorable in
Unicode's DerivedCoreProperties, but for U+200B, which separates words). The encoder's input is never normalised.
"""

from __future__ import annotations

import re
import unicodedata

NORMALISATION = "nfkc-1"  # stored beside vectors; change it with anything in this file
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e0fff]"
)


def normalised(text: str) -> str:
    """The text in its normal form; ASCII stays as it is."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def spellings(text: str) -> list[str]:
    """The text as it is, in its normal form, composed and decomposed, each once: for what was stored as it came."""
    if text.isascii():
        return [text]
    forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    return list(dict.fromkeys((text, normalised(text), *forms)))
