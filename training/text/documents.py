"""Documents cut at their headings: HTML and Mallard pages, articles of Wikipedia, novels and plays."""

import bz2
import html
import random
import re
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from training.text.fetch import Package, Source
from training.text.passage import MIN_WORDS, Item, chunks, clean, heading_text, section_items, words

TERM = 7  # the level of <dt>, below h1 to h6
ENOUGH = 1.3  # times what a source may give, since some of it is dropped later
_SKIPPED = (
    "script style nav header footer pre table svg button form select head noscript aside screen info links credit "
    "media comment listing textarea"
)
_BLOCKS = (
    "p li dd dt div section article blockquote tr td th ul ol dl br hr main figure item steps list note terms body"
)
SKIPPED_TAGS, BLOCK_TAGS = frozenset(_SKIPPED.split()), frozenset(_BLOCKS.split())
MARKED_TAGS = frozenset(("div", "ul", "ol", "span", "a", "section", "p", "td"))
SKIPPED_MARKS = re.compile(
    r"sidebar|\brelated\b|toctree|\btoc\b|gtoc|navheader|headerlink|footer|highlight|menu|versionmodified|toolbar"
)
HEADING = re.compile(r"(CHAPTER|Chapter|VOLUME|Volume|ACT|Act|SCENE|Scene)\s+([IVXLC]+|\d+|end)\b")


class PageParser(HTMLParser):
    """Cuts an HTML or Mallard page into sections: (level, heading path, paragraphs)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: list[tuple[int, list[str], list[str]]] = [(0, [], [])]
        self.path: list[tuple[int, str]] = []
        self.skipping: list[str] = []
        self.buffer: list[str] = []
        self.heading: tuple[int, str] | None = None
        self.depth = 0
        self.mallard = False

    def flush(self) -> None:
        """Ends a paragraph."""
        text = clean("".join(self.buffer))
        self.buffer = []
        if words(text) >= 3:
            self.sections[-1][2].append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens a skipped block, a heading or a paragraph."""
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.append(tag)
            return
        marks = " ".join(v or "" for k, v in attrs if k in ("class", "id"))
        if tag in SKIPPED_TAGS or (tag in MARKED_TAGS and SKIPPED_MARKS.search(marks)):
            self.skipping = [tag]
            return
        if tag == "page":
            self.mallard = True
        if self.mallard and tag == "section":
            self.depth += 1
        if re.fullmatch(r"h[1-6]", tag) or tag == "dt" or (self.mallard and tag == "title"):
            self.flush()
            level = TERM if tag == "dt" else self.depth + 1 if tag == "title" else int(tag[1])
            self.heading = (level, tag)
        elif tag in BLOCK_TAGS and not self.heading:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        """Closes what was opened."""
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.pop()
            return
        if self.mallard and tag == "section":
            self.depth -= 1
        if self.heading and tag == self.heading[1]:
            level = self.heading[0]
            text = heading_text("".join(self.buffer))
            self.buffer, self.heading = [], None
            if text:
                self.path = [h for h in self.path if h[0] < level] + [(level, text)]
                self.sections.append((level, [h[1] for h in self.path], []))
        elif tag in BLOCK_TAGS and not self.heading:
            self.flush()

    def handle_data(self, data: str) -> None:
        """Keeps text outside skipped blocks."""
        if not self.skipping:
            self.buffer.append(data)


def page_sections(page: str) -> list[tuple[int, list[str], list[str]]]:
    """The (level, heading path, paragraphs) of each section of a page."""
    parser = PageParser()
    parser.feed(page)
    parser.flush()
    return parser.sections


def page_items(page: str, product: str) -> Iterator[Item]:
    """The items of one page; short definitions join their section."""
    joined: list[tuple[list[str], list[str]]] = []
    for level, path, paragraphs in page_sections(page):
        if level < TERM or words(" ".join(paragraphs)) >= MIN_WORDS:
            joined.append((path, paragraphs))
        elif paragraphs:
            definition = f"{path[-1]}: {' '.join(paragraphs)}"
            if joined and joined[-1][0] == path[:-1]:
                joined[-1][1].append(definition)
            else:
                joined.append((path[:-1], [definition]))
    for path, paragraphs in joined:
        yield from section_items(product, path, paragraphs)


def read_pages(package: Package, source: Source) -> Iterator[Item]:
    """The pages of a documentation package, in chance order, until there is enough."""
    pages = [data for _, data in package.files(source.include, source.exclude)]
    random.Random(source.name).shuffle(pages)
    found = 0
    for data in pages:
        for item in page_items(data.decode("utf-8", "replace"), source.product):
            found += words(item.text) >= MIN_WORDS
            yield item
        if found > ENOUGH * source.most:
            break


def read_wiki_dump(package: Package, source: Source) -> Iterator[Item]:
    """The articles of the shortened Wikipedia dump among gensim's test data."""
    for _, data in package.files(r"test_data/enwiki-latest-pages-articles1\.xml.*bz2$"):
        for page in re.findall(r"(?s)<page>.*?</page>", bz2.decompress(data).decode("utf-8", "replace")):
            title = re.search(r"<title>(.*?)</title>", page)
            body = re.search(r"(?s)<text[^>]*>(.*?)</text>", page)
            if title and body and ":" not in title[1] and not body[1].lstrip().upper().startswith("#REDIRECT"):
                yield from article_items(html.unescape(title[1]), html.unescape(body[1]))


def article_items(title: str, wikitext: str) -> Iterator[Item]:
    """The sections of an article; their queries name the article."""
    path: list[str] = [title]
    paragraphs: list[str] = []
    for line in [*strip_wikitext(wikitext).splitlines(), "== end =="]:
        if heading := re.fullmatch(r"(={2,5})\s*(.*?)\s*\1", line.strip()):
            for item in section_items("", path, paragraphs):
                if item.query and len(path) > 1 and title.lower() not in item.query.lower():
                    item = Item(item.title, item.text, f"{title} {item.query}")
                yield item
            path, paragraphs = [*path[: len(heading[1]) - 1], heading[2]], []
        elif line[:1] not in "|!{}" and words(line) >= 6:
            paragraphs.append(clean(line.lstrip("*#:; ")))


def strip_wikitext(text: str) -> str:
    """Plain text of an article's wikitext, its headings left as they are."""
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    text = re.sub(r"(?is)<ref[^>]*/>|<ref.*?</ref>|<(math|gallery|timeline|code|source|table).*?</\1>", "", text)
    for _ in range(6):  # from the innermost outwards
        text, count = re.subn(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|)(?!\|\}).)*\|\}", "", text, flags=re.S)
        if not count:
            break
    for _ in range(4):
        text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):(?:[^\[\]]|\[[^\[\]]*\])*\]\]", "", text)
        text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}|__\w+__", "", text)
    return re.sub(r"\(\s*[;,]?\s*\)", "", text)


def book_items(title: str, lines: list[str]) -> Iterator[Item]:
    """A book's passages, with the chapter in the title."""
    paragraphs: list[str] = []
    current: list[str] = []
    chapter = ""
    for line in [*lines, "", "CHAPTER end"]:
        if HEADING.match(line.strip()):
            yield from (Item(f"{title} – {chapter}".strip(" –"), text) for text in chunks(paragraphs))
            chapter, paragraphs, current = line.strip().capitalize()[:40], [], []
        elif line.strip():
            current.append(line.strip())
        elif current:
            paragraphs.append(clean(" ".join(current).replace("_", "")))
            current = []


def read_austen(package: Package, source: Source) -> Iterator[Item]:
    """Jane Austen's novels, out of an R package's lazy-load database: zlib streams, one after the other."""
    for _, data in package.files(r"janeaustenr/data/Rdata\.rdb$"):
        place = 0
        while (start := data.find(b"\x78\x9c", place)) >= 0:
            unpacker = zlib.decompressobj()
            try:
                raw = unpacker.decompress(data[start:])
            except zlib.error:
                place = start + 2
                continue
            place = len(data) - len(unpacker.unused_data)
            lines = r_strings(raw)
            if len(lines) > 1000:
                yield from book_items(lines[0].title(), lines[1:])


def r_strings(raw: bytes) -> list[str]:
    """The strings under 200 bytes of an R serialisation: a type, a big-endian length and the bytes."""
    found, at = [], 0
    while (at := raw.find(b"\x00\x09", at)) >= 0 and at + 6 <= len(raw):
        length = struct.unpack(">i", raw[at + 2 : at + 6])[0]
        if 0 <= length < 200:
            found.append(raw[at + 6 : at + 6 + length].decode("utf-8", "replace"))
            at += 6 + length
        else:
            at += 1
    return found


def read_shakespeare(package: Package, source: Source) -> Iterator[Item]:
    """Shakespeare's works in modern spelling, without the transcriber's header."""
    for name, data in package.files(r"shksprdata/texts/.*_gut\.txt$"):
        text = data.decode("utf-8", "replace").replace("\r", "")
        for mark in (r"\*END\*?THE SMALL PRINT.*", r"\*\*\* ?START OF.*", r"\*\*\*START.*"):
            text = re.split(mark, text, maxsplit=1)[-1]
        text = re.split(r"(?i)\*\*\* ?END OF|^End of (the|this) Project", text, maxsplit=1, flags=re.M)[0]
        if "project gutenberg" not in text.lower():
            title = Path(name).stem.removesuffix("_gut").replace("_", " ").title()
            yield from book_items(title, text.splitlines())
