"""Dictionaries: WordNet, dictd databases (FOLDOC, the Jargon File) and the Bioregistry."""

import gzip
import json
import re
import string
from collections.abc import Iterator

from training.text.fetch import Package, Source
from training.text.passage import MAX_WORDS, Item, choice, chunks, clean, words

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
    for number, text in enumerate(chunks(paragraphs)):
        yield Item(head, text, None if number else query)


def read_bioregistry(package: Package, source: Source) -> Iterator[Item]:
    """Names and descriptions of scientific databases and vocabularies."""
    for _, data in package.files(r"bioregistry/data/bioregistry\.json$"):
        for prefix, record in json.loads(data).items():
            name = record.get("name") or prefix
            yield Item(name, clean(record.get("description") or ""), name)
