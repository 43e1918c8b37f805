"""Encyclopaedic text: Wikipedia, the World Factbook and the Wikibooks Cookbook."""

import bz2
import html
import json
import re
from collections.abc import Iterator
from typing import Any

from training.text.fetch import Package, Source
from training.text.passage import MAX_WORDS, MIN_WORDS, Item, choice, chunks, clean, is_prose, words
from training.text.sections import section_items


def read_summaries(package: Package, source: Source) -> Iterator[Item]:
    """Opening paragraphs of Wikipedia's vital articles."""
    for _, data in package.files(r"data/summaries_en-us\.json$"):
        for record in json.loads(data).values():
            title, about = record["title"], record.get("description") or ""
            asked = "who was" if record["topic"] == "People" else "what is"
            query = (f"{asked} {title}?", title, f"{title} {about}".strip())[choice(title, 3)]
            for number, text in enumerate(chunks([clean(record["extract"])])):
                yield Item(title, text, None if number else query)


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


def read_factbook(package: Package, source: Source) -> Iterator[Item]:
    """Country facts: one text for each field that has prose, the short ones of a section together."""
    for _, data in package.files(r"data/.*/[a-z]{2}\.json$"):
        record = json.loads(data)
        country = country_name(record)
        if country and words(country) <= 6:
            for section, fields in record.items():
                if isinstance(fields, dict):
                    yield from country_items(country, section, fields)


def country_name(record: dict[str, Any]) -> str:
    """The country's short name, or its long one where it has none."""
    names = dict(leaves(record.get("Government", {}).get("Country name", {})))
    short, long = (clean(names.get(f"conventional {length} form", "")) for length in ("short", "long"))
    return long if short.lower() in ("none", "") else short


def country_items(country: str, section: str, fields: dict[str, Any]) -> Iterator[Item]:
    """The items of one section of a country's record."""
    short: list[str] = []
    for name, value in fields.items():
        facts = [(k, clean(re.sub(r"<[^>]+>", " ", t))) for k, t in leaves(value)]
        facts = [(k, t) for k, t in facts if t and not re.fullmatch(r"(?i)note:?|n/?a", t)]
        text = "; ".join(f"{k}: {t}" if k else t for k, t in facts)
        if not is_prose(text) and words(text) > MAX_WORDS:
            continue
        if words(text) < MIN_WORDS:
            short.append(f"{name}: {text}.")
            continue
        query = f"{country} {name[:1].lower()}{name[1:]}"
        for number, piece in enumerate(chunks([text])):
            yield Item(f"{country} – {section}: {name}", piece, None if number else query)
    for piece in chunks(short):
        yield Item(f"{country} – {section}", piece)


def leaves(value: object) -> Iterator[tuple[str, str]]:
    """(names joined, text) of every `text` in nested objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "text" and isinstance(inner, str):
                yield "", inner
            else:
                yield from ((f"{key} {name}".strip(), text) for name, text in leaves(inner))


def read_recipes(package: Package, source: Source) -> Iterator[Item]:
    """Recipes of the Wikibooks Cookbook: ingredients, then steps."""
    for _, data in package.files(r"data/recipes_en-us\.json$"):
        for record in json.loads(data).values():
            lines = [f"Ingredients: {', '.join(record['ingredients'])}.", *record["steps"]]
            lines = [clean(re.sub(r"\(\s*\)", "", line)) for line in lines]
            for number, text in enumerate(chunks(lines)):
                yield Item(record["title"], text, None if number else f"how to make {record['title']}")
