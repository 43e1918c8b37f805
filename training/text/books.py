"""Novels and plays in the public domain."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from training.text.fetch import Package, Source
from training.text.passage import Item, chunks, clean

HEADING = re.compile(r"(CHAPTER|Chapter|VOLUME|Volume|ACT|Act|SCENE|Scene)\s+([IVXLC]+|\d+|end)\b")


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
