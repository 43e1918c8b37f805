"""Entries under a name: dictionaries, encyclopaedic summaries, facts, recipes, operations of AWS, web features."""

import gzip
import json
import random
import re
import string
from collections.abc import Iterator
from typing import Any

from training.text.documents import ENOUGH, page_sections
from training.text.fetch import Package, Source
from training.text.passage import MAX_WORDS, MIN_WORDS, Item, choice, chunks, clean, is_prose, items_of, words

PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"  # of dictd's numbers


def read_wordnet(package: Package, source: Source) -> Iterator[Item]:
    """Headword and its glosses: one entry for each word, its senses in order of part of speech."""
    entries: dict[str, list[str]] = {}
    for _, data in package.files(r"/wordnet/data\.(noun|verb|adj|adv)$"):
        for line in data.decode("latin-1").splitlines():
            for lemma, sense in wordnet_senses(line):
                entries.setdefault(lemma, []).append(sense)
    for lemma, senses in entries.items():
        text = ""
        for number, sense in enumerate(senses, 1):
            label = f"{number}. {sense} " if len(senses) > 1 else f"{sense} "
            if words(text + label) > MAX_WORDS:
                break
            text += label
        yield Item(lemma, text.strip(), lemma if words(lemma) > 1 else f"{lemma} definition")


def wordnet_senses(line: str) -> Iterator[tuple[str, str]]:
    """(word, gloss with the part of speech and the synonyms) of each word of one line of a data file."""
    if line.startswith("  ") or " | " not in line:  # the licence, at the head of the file
        return
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    lemmas = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(int(fields[3], 16))]
    gloss = clean(gloss).rstrip(";")
    for number, lemma in enumerate(lemmas):
        others = [x for i, x in enumerate(lemmas) if i != number][:4]
        same = f" Also: {', '.join(others)}." if others else ""
        yield lemma, f"({PARTS_OF_SPEECH[fields[2]]}) {gloss}.{same}"


def read_dictd(package: Package, source: Source) -> Iterator[Item]:
    """The entries of a dictd database: an index of headwords with places in a compressed file."""
    index, data = b"", b""
    for name, content in package.files(r"/dictd/.*\.(index|dict\.dz)$"):
        if name.endswith(".index"):
            index = content
        else:
            data = gzip.decompress(content)
    seen = set()
    for line in index.decode("utf-8", "replace").splitlines():
        head, start, length = line.split("\t")[:3]
        if not head.startswith("00-database") and start not in seen:
            seen.add(start)
            place = dictd_number(start)
            yield from dictd_items(head, data[place : place + dictd_number(length)].decode("utf-8", "replace"))


def dictd_number(digits: str) -> int:
    """A number in dictd's base 64."""
    value = 0
    for digit in digits:
        value = value * len(DIGITS) + DIGITS.index(digit)
    return value


def dictd_items(indexed: str, entry: str) -> Iterator[Item]:
    """The items of one entry: its headwords stand on its first lines, without indentation."""
    lines = entry.splitlines()
    heads: list[str] = []
    while lines and lines[0].strip() and not lines[0].startswith("  ") and len(heads) < 3:
        heads.append(lines.pop(0).strip())
    head = heads[0] if heads else indexed
    body = re.sub(r"\{([^{}]*?)\s*(\([^()]*\))?\}", r"\1", "\n".join(lines))
    body = re.sub(r"<[a-z ,-]{2,30}>|\[[^\]]{0,80}\?\]|\(\d{4}-\d\d-\d\d\)|\(https?:[^)]*\)", "", body)
    paragraphs = [re.sub(r"( \.)+$", "", clean(p)) for p in re.split(r"\n\s*\n", body)]
    contact = re.compile(r"(?i)(https?|ftp|e-mail|usenet|telephone):")
    paragraphs = [p for p in paragraphs if words(p) > 1 and not contact.match(p)]
    query = f"what is {head}?" if choice(head, 2) else head
    yield from items_of(head, paragraphs, query)


def records(package: Package, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The (key, record) of the JSON objects in a package's files."""
    for _, data in package.files(path):
        yield from json.loads(data).items()


def read_bioregistry(package: Package, source: Source) -> Iterator[Item]:
    """Names and descriptions of scientific databases and vocabularies."""
    for prefix, record in records(package, r"bioregistry/data/bioregistry\.json$"):
        name = record.get("name") or prefix
        yield Item(name, clean(record.get("description") or ""), name)


def read_summaries(package: Package, source: Source) -> Iterator[Item]:
    """Opening paragraphs of Wikipedia's vital articles."""
    for _, record in records(package, r"data/summaries_en-us\.json$"):
        title, about = record["title"], record.get("description") or ""
        asked = "who was" if record["topic"] == "People" else "what is"
        query = (f"{asked} {title}?", title, f"{title} {about}".strip())[choice(title, 3)]
        yield from items_of(title, [clean(record["extract"])], query)


def read_recipes(package: Package, source: Source) -> Iterator[Item]:
    """Recipes of the Wikibooks Cookbook: ingredients, then steps."""
    for _, record in records(package, r"data/recipes_en-us\.json$"):
        lines = [f"Ingredients: {', '.join(record['ingredients'])}.", *record["steps"]]
        lines = [clean(re.sub(r"\(\s*\)", "", line)) for line in lines]
        yield from items_of(record["title"], lines, f"how to make {record['title']}")


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
        yield from items_of(f"{country} – {section}: {name}", [text], query)
    yield from items_of(f"{country} – {section}", short, None)


def leaves(value: object) -> Iterator[tuple[str, str]]:
    """(names joined, text) of every `text` in nested objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "text" and isinstance(inner, str):
                yield "", inner
            else:
                yield from ((f"{key} {name}".strip(), text) for name, text in leaves(inner))


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
            paragraphs = [text for _, _, section in sections for text in section]
            for item in items_of(f"{service}: {name}", paragraphs, f"{service} {spaced}"):
                found += words(item.text) >= MIN_WORDS
                yield item
        if found > ENOUGH * source.most:
            break


def read_caniuse(package: Package, source: Source) -> Iterator[Item]:
    """Web platform features and what they are."""
    for _, data in package.files(r"package/fulldata-json/data-2\.0\.json$"):
        for record in json.loads(data)["data"].values():
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", f"{record['description']} {record.get('notes', '')}")
            yield from (Item(record["title"], t, record["title"]) for t in list(chunks([clean(text)]))[:1])
