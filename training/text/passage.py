"""Texts with titles and queries: cleaning, cutting to the length of a passage, queries made of headings, equality."""

import hashlib
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MIN_WORDS, AIM_WORDS, MAX_WORDS = 30, 130, 220
_COMMON = (
    "the a an of to and in is for that it on with as be by are this from or at can if not you was which "
    "will used when has have use its all one but into may their his her he she they"
)
COMMON_WORDS = frozenset(_COMMON.split())
GENERIC = re.compile(
    r"(?i)^(see also|examples?|parameters?|notes?|synopsis|description|overview|introduction|summary|return values?|"
    r"usage|options|arguments|errors|remarks|syntax|background|details|caveats|warnings?|references?|footnotes|authors?|"
    r"contents?|getting started|general|other|misc\w*|about|changelog|history|new features|bug fixes|compatibility)\W*$"
)
SKIPPED = re.compile(
    r"(?i)^(see also|references?|footnotes|external links|further reading|authors?|contents?|table of contents|"
    r"copyright|navigation|bibliography|notes and references|contributors|related articles)\W*$"
)


@dataclass(frozen=True)
class Item:
    """A cleaned text with its title and, where there is a true one, its query."""

    title: str
    text: str
    query: str | None = None


def clean(text: str) -> str:
    """One line of plain text."""
    text = html.unescape(text)
    text = re.sub(r"[\u200b-\u200f\ufeff\u00ad\ue000-\uf8ff¶]", "", text)
    text = re.sub(r"\[(edit|citation needed|\d+)\]", "", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r" ([,.;:!?)\]])(?=\s|$)", r"\1", text)
    return re.sub(r"([(\[]) ", r"\1", text).strip()


def words(text: str) -> int:
    """The number of words, cut at spaces."""
    return len(text.split())


def sentences(text: str) -> list[str]:
    """The text cut after sentence ends."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(\[`])", text)


def chunks(paragraphs: Iterable[str]) -> Iterator[str]:
    """Joins paragraphs up to about AIM_WORDS words and cuts those over MAX_WORDS at sentence ends."""
    chunk: list[str] = []
    size = 0
    for piece in (piece for paragraph in paragraphs for piece in _pieces(paragraph)):
        count = words(piece)
        if chunk and (size + count > MAX_WORDS or size >= AIM_WORDS):
            yield " ".join(chunk)
            chunk, size = [], 0
        chunk.append(piece)
        size += count
    if chunk:
        yield " ".join(chunk)


def _pieces(paragraph: str) -> Iterator[str]:
    if words(paragraph) <= MAX_WORDS:
        yield paragraph
        return
    part: list[str] = []
    for sentence in sentences(paragraph):
        if part and words(" ".join(part)) + words(sentence) > AIM_WORDS:
            yield " ".join(part)
            part = []
        part.append(sentence)
    yield " ".join(part)


def items_of(title: str, paragraphs: Iterable[str], query: str | None) -> Iterator[Item]:
    """The passages under one title; the first bears the query."""
    for number, text in enumerate(chunks(paragraphs)):
        yield Item(title, text, None if number else query)


def is_prose(text: str) -> bool:
    """Whether the text reads as English prose, not as a table, a listing or another language."""
    solid = text.replace(" ", "")
    if not solid or sum(c.isalpha() for c in solid) < 0.72 * len(solid):
        return False
    if sum(c.isascii() for c in text) < 0.94 * len(text):
        return False
    tokens = [t.strip(".,;:()\"'").lower() for t in text.split()]
    common = sum(t in COMMON_WORDS for t in tokens)
    return common >= 0.12 * len(tokens) and max(map(len, tokens)) < 70


def text_key(text: str) -> bytes:
    """What two texts share if they are the same but for case and punctuation."""
    return hashlib.sha1(re.sub(r"\W+", " ", text.lower()).encode()).digest()[:10]


def choice(text: str, size: int) -> int:
    """A number below `size` that is always the same for the same text, to vary the form of queries."""
    return hashlib.sha1(text.encode()).digest()[0] % size


def heading_text(text: str) -> str:
    """A heading without its number and its link marks."""
    text = clean(text).replace("#", "").strip(" –-:")
    return re.sub(r"^(Chapter|Appendix|Section)?\s*([A-Z]|\d+)(\.\d+)*\.\s+", "", text)[:120].strip()


def section_query(prefix: str, path: list[str]) -> str | None:
    """A query that names a section: its heading, with its page or product where the heading says too little."""
    heading = path[-1] if path else ""
    if not heading or SKIPPED.match(heading):
        return None
    if heading.endswith("?"):
        return heading
    if signature := re.match(r"[^()]*?([\w.:]+)(?:<[^()]*?>)?\(", heading):
        heading = signature[1]
        return heading if prefix.lower() in heading.lower() else f"{prefix} {heading}"
    query = heading
    if GENERIC.match(heading) or words(heading) < 2:
        parent = next((h for h in reversed(path[:-1]) if not GENERIC.match(h)), "")
        if not parent and GENERIC.match(heading):
            return None
        query = parent if GENERIC.match(heading) and parent else f"{parent} {heading}".strip()
    named = prefix.lower() in query.lower() or choice(query, 2) == 0
    return query if named else f"{prefix} {query}"


def section_items(prefix: str, path: list[str], paragraphs: list[str]) -> Iterator[Item]:
    """The items of one section; the first passage bears the query."""
    path = [h for i, h in enumerate(path) if h and h not in path[:i]]
    if path and SKIPPED.match(path[-1]):
        return
    title = " – ".join([prefix, *path]) if prefix and (not path or prefix not in path[0]) else " – ".join(path)
    query = section_query(prefix, path)
    for number, text in enumerate(chunks(paragraphs)):
        yield Item(title, text, query if number == 0 and words(text) >= 20 else None)
