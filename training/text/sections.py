"""Sections of a page: their titles, and queries made of their headings."""

import re
from collections.abc import Iterator

from training.text.passage import Item, choice, chunks, clean, words

GENERIC = re.compile(
    r"(?i)^(see also|examples?|parameters?|notes?|synopsis|description|overview|introduction|summary|return values?|"
    r"usage|options|arguments|errors|remarks|syntax|background|details|caveats|warnings?|references?|footnotes|authors?|"
    r"contents?|getting started|general|other|misc\w*|about|changelog|history|new features|bug fixes|compatibility)\W*$"
)
SKIPPED = re.compile(
    r"(?i)^(see also|references?|footnotes|external links|further reading|authors?|contents?|table of contents|"
    r"copyright|navigation|bibliography|notes and references|contributors|related articles)\W*$"
)


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
