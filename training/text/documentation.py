"""Documentation: HTML and Mallard pages, the operations of AWS, and the features of the web platform."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from training.text.fetch import Package, Source
from training.text.passage import MIN_WORDS, Item, chunks, clean, words
from training.text.sections import heading_text, section_items

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


def read_aws(package: Package, source: Source) -> Iterator[Item]:
    """What each operation of the AWS services does, in the newest version of each service."""
    latest: dict[str, tuple[str, bytes]] = {}
    for name, data in package.files(r"botocore/data/.*/service-2\.json(\.gz)?$"):
        service, date = name.split("/")[2:4]
        if service not in latest or latest[service][0] < date:
            latest[service] = (date, gzip.decompress(data) if name.endswith(".gz") else data)
    services = sorted(latest.items())
    random.Random(source.name).shuffle(services)
    found = 0
    for _, (_, data) in services:
        model = json.loads(data)
        service = model["metadata"].get("serviceAbbreviation") or model["metadata"]["serviceFullName"]
        for name, operation in model["operations"].items():
            sections = page_sections(operation.get("documentation", ""))
            spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
            for number, text in enumerate(chunks(p for _, _, paragraphs in sections for p in paragraphs)):
                found += words(text) >= MIN_WORDS
                yield Item(f"{service}: {name}", text, None if number else f"{service} {spaced}")
        if found > ENOUGH * source.most:
            break


def read_caniuse(package: Package, source: Source) -> Iterator[Item]:
    """Web platform features and what they are."""
    for _, data in package.files(r"package/fulldata-json/data-2\.0\.json$"):
        for record in json.loads(data)["data"].values():
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", f"{record['description']} {record.get('notes', '')}")
            yield from (Item(record["title"], t, record["title"]) for t in list(chunks([clean(text)]))[:1])
