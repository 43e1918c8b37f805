"""The part of a text that can count under a limit of tokens: only this part is tokenised. Knows nothing of templates.

A tokenizer takes time and some 500 bytes a character, whatever is kept of its tokens. So

- of a text, `CHARS_PER_TOKEN` characters for each token of the limit, and of the spare ones, can count at all. What
  comes after them is cut, and reported as cut, as if it had too many tokens. Running text has four or five characters
  a token, Chinese one; more than 64 have nothing but blanks, or what a vocabulary has no word for.
- of these, a first part is tokenised, and twice as much, until there are `SPARE_TOKENS` tokens above the limit. A cut
  changes tokens near it alone: in WordPiece the last word's, of which there are at most 100; in BPE those whose merges
  competed with merges across the cut. So the tokens that are kept are those of the text that was not cut.

The same text under the same limit always gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

CHARS_PER_TOKEN = 64
SPARE_TOKENS = 128
FIRST_CHARS_PER_TOKEN = 4
TOGETHER = 64  # texts in one call of the tokenizer: its encodings are large, and are dropped after each call


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of one text, and whether a limit cut it."""

    ids: list[int]
    truncated: bool


def countable_chars(limit: int) -> int:
    """How many characters of a text can count under a limit of tokens."""
    return CHARS_PER_TOKEN * (limit + SPARE_TOKENS)


def first_tokens(tokenizer: Tokenizer, texts: Sequence[str], limit: int, *, prefix: str = "") -> list[Tokens]:
    """The first `limit` tokens of each text behind `prefix`, whose tokens count; on the tokenizer's own threads."""
    found: list[Tokens] = []
    for start in range(0, len(texts), TOGETHER):
        found += _first_tokens(tokenizer, texts[start : start + TOGETHER], limit, prefix)
    return found


def first_offsets(tokenizer: Tokenizer, text: str, limit: int, *, prefix: str = "") -> list[tuple[int, int]]:
    """Where the tokens of `first_tokens` stand in the text with its prefix: characters [start, end)."""
    for chars in _steps(limit):
        encoding = tokenizer.encode(prefix + text[:chars], add_special_tokens=False)
        if _suffices(encoding, text, chars, limit):
            break
    return list(encoding.offsets[:limit])


def _first_tokens(tokenizer: Tokenizer, texts: Sequence[str], limit: int, prefix: str) -> list[Tokens]:
    found: dict[int, Tokens] = {}
    for chars in _steps(limit):
        left = [i for i in range(len(texts)) if i not in found]
        if not left:
            break
        parts = [prefix + texts[i][:chars] for i in left]
        for i, encoding in zip(left, tokenizer.encode_batch_fast(parts, add_special_tokens=False), strict=True):
            if _suffices(encoding, texts[i], chars, limit):
                cut = len(encoding) > limit or len(texts[i]) > chars
                found[i] = Tokens(encoding.ids[:limit], cut)
    return [found[i] for i in range(len(texts))]


def _steps(limit: int) -> list[int]:
    """How many characters are tokenised, if those before did not suffice; the last is all that can count."""
    steps, chars = [], FIRST_CHARS_PER_TOKEN * (limit + SPARE_TOKENS)
    while chars < countable_chars(limit):
        steps.append(chars)
        chars *= 2
    return [*steps, countable_chars(limit)]


def _suffices(encoding: Encoding, text: str, chars: int, limit: int) -> bool:
    return len(text) <= chars or chars >= countable_chars(limit) or len(encoding) >= limit + SPARE_TOKENS
