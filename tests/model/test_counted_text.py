"""The tokens of a text that is cut before it is tokenised, against those of the whole text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from kalm_cache.model.checkpoint import open_checkpoint
from kalm_cache.model.counted_text import countable_chars, first_offsets, first_tokens
from tests.texts import long_text

LIMIT = 24
TEXTS = {
    "words": long_text(3000),
    "long words": " ".join("x" * n + "yz" * (n // 2) for n in range(1, 200)),
    "one word": "ab" * 9000,
    "one letter": "a" * 20_000,
    "chinese": "中文文档检索系统很慢" * 2000,
    "emoji": "👩‍👩‍👧‍👦🕺🏽 " * 2000,
    "accents": "e\u0301a\u0308o\u0302 " * 3000,
    "stacked accents": ("o" + "\u0301" * 40 + " ") * 300,
    "newlines": ("one\n\n\ntwo" + "\n" * 31) * 600,
    "blanks": ("word" + " " * 37) * 600,
    "specials": "<end_of_turn>\n<start_of_turn>model" * 600,
    "bytes": "\u0001\ufffd\U0001f9ff" * 6000,
    "punctuation": "?!.,;:" * 3000,
}


@pytest.fixture(scope="module", params=["mini", "tiny"])
def tokenizer(request: pytest.FixtureRequest, mini_folder: Path) -> Tokenizer:
    """BPE as Gemma's, and the bundled model's WordPiece."""
    folder = mini_folder if request.param == "mini" else open_checkpoint("tiny").folder
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode("<Document>: " + text, add_special_tokens=False).ids


@pytest.mark.parametrize("limit", [1, LIMIT, 300])
@pytest.mark.parametrize("name", TEXTS)
def test_tokens_of_a_cut_text_are_the_first_ones_of_the_whole_text(tokenizer: Tokenizer, name: str, limit: int) -> None:
    expected = whole(tokenizer, TEXTS[name])
    [found] = first_tokens(tokenizer, [TEXTS[name]], limit, prefix="<Document>: ")
    assert found.ids == expected[:limit]
    assert found.truncated == (len(expected) > limit or len(TEXTS[name]) > countable_chars(limit))


def test_every_place_of_the_cut_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    for shift in range(12):  # moves the text under the place where it is cut
        text = "z" * shift + " " + long_text(400, seed=shift) + "中文\n\n\n\ne\u0301👩‍👩‍👧" * 200
        [found] = first_tokens(tokenizer, [text], LIMIT)
        assert found.ids == tokenizer.encode(text, add_special_tokens=False).ids[:LIMIT]


def test_offsets_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    text = long_text(3000)
    expected = tokenizer.encode("<Document>: " + text, add_special_tokens=False).offsets[:LIMIT]
    assert first_offsets(tokenizer, text, LIMIT, prefix="<Document>: ") == expected


def test_what_lies_beyond_64_characters_a_token_never_counts_and_is_reported(tokenizer: Tokenizer) -> None:
    blanks = " " * countable_chars(LIMIT)
    before = first_tokens(tokenizer, [blanks[:-4] + "bees"], LIMIT, prefix="a")
    [beyond] = first_tokens(tokenizer, [blanks + "bees"], LIMIT, prefix="a")
    assert beyond.truncated
    assert [beyond.ids] == [found.ids for found in first_tokens(tokenizer, [blanks], LIMIT, prefix="a")]
    if len(tokenizer.encode(blanks).ids) < LIMIT:
        assert before[0].ids != beyond.ids


class _Counting:
    """A tokenizer that counts the characters given to it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def encode_batch_fast(self, texts: list[str], **options: bool) -> list[object]:
        self.characters += sum(map(len, texts))
        return list(self._tokenizer.encode_batch_fast(texts, **options))


@pytest.mark.parametrize("name", TEXTS)
def test_the_work_is_bounded_whatever_the_text(tokenizer: Tokenizer, name: str) -> None:
    counting = _Counting(tokenizer)
    first_tokens(counting, [TEXTS[name] * 50], LIMIT)  # type: ignore[arg-type]
    assert counting.characters <= 2 * countable_chars(LIMIT)
    if name in ("words", "chinese"):
        assert counting.characters <= 16 * (LIMIT + 128)
