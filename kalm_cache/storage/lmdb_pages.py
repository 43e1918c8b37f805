"""Finished LMDB files, read without LMDB: where every value lies, and one digest of all that leads there.

LMDB trusts its pages: one flipped bit can lead a reader astray or end its process. In a file of large values, almost
all is values; the tree above them is thousands of times smaller, is read once when the file is opened, and compared.
What a value holds is not read: py-lmdb touches all pages of every value it returns, 64 for a record that is in 4.

Layout as in mdb.c of LMDB 0.9 (data version 1, which every 0.9 writes), 64-bit, little-endian:

    page    number u64 · pad u16 · flags u16 · lower u16 · upper u16 · node offsets u16 each, from the page's start
    node    lo u16 · hi u16 · flags u16 · key size u16 · key · data; lo and hi: bytes of data, in a branch a page number
    meta    in pages 0 and 1, from byte 16: magic u32 · version u32 · address u64 · map size u64 · two databases (free
            pages, main) · last page u64 · transaction u64
    database  pad u32 (of the first one: page size) · flags u16 · depth u16 · branch, leaf, overflow pages u64 each ·
            entries u64 · root u64
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from kalm_cache.errors import StoreError

_META = struct.Struct("<IIQQ")
_DATABASE = struct.Struct("<IHHQQQQQ")
_LAST = struct.Struct("<QQ")
_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_PAGE_NUMBER = struct.Struct("<Q")
_META_BYTES = _META.size + 2 * _DATABASE.size + _LAST.size
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF = 0x01, 0x02  # flags of pages
_LARGE, _SUBDATABASE = 0x01, 0x02  # flags of leaf nodes
_EMPTY = (1 << 64) - 1  # root of a database without entries
_DEEPEST = 32  # MDB's own limit

Content = bytes | memoryview


@dataclass(slots=True)
class Values:
    """Where the values of one database lie in the file, in order of their keys: about 100 bytes of memory each."""

    keys: list[bytes] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))

    def place_of(self, key: bytes) -> int | None:
        """The place of the last key that is not behind `key`."""
        place = bisect_right(self.keys, key) - 1
        return None if place < 0 else place


@dataclass(slots=True)
class Tree:
    """What was read of a file.

    `digest`: SHA-256, hex, over both meta pages and all that leads to values, in key order; not over the values, small
    ones in leaf pages included, nor over unused bytes. `problems`: what could not be read.
    """

    databases: dict[str, Values] = field(default_factory=dict)
    digest: str = ""
    problems: list[str] = field(default_factory=list)


def read_tree(content: Content) -> Tree:
    """Read the tree of a file, given as a map of it or as bytes; goes on behind pages that make no sense."""
    reader = _Reader(content)
    try:
        reader.read()
    except (StoreError, struct.error) as exc:
        reader.tree.problems.append(str(exc))
    reader.tree.digest = reader.hashed.hexdigest()
    return reader.tree


class _Reader:
    def __init__(self, content: Content) -> None:
        self._content, self.tree, self.hashed = memoryview(content), Tree(), hashlib.sha256()
        self._page_bytes, self._last_page, self._visited = 4096, 0, 0

    def read(self) -> None:
        (self._page_bytes, *_) = _DATABASE.unpack_from(self._content, _PAGE.size + _META.size)
        if self._page_bytes not in (1 << bits for bits in range(9, 17)):
            raise StoreError("its pages have an impossible size")
        metas = [self._content[at : at + _PAGE.size + _META_BYTES] for at in (0, self._page_bytes)]
        for meta in metas:
            self.hashed.update(meta)
        root = self._root(metas)
        if (self._last_page + 1) * self._page_bytes > len(self._content):
            self.tree.problems.append("it was cut")
            self._last_page = len(self._content) // self._page_bytes - 1  # no more pages are visited than there are
        self._walk(root, None, depth=0)

    def _root(self, metas: list[memoryview]) -> int:
        """The main database's root, by the newer of the two meta pages."""
        found: list[tuple[int, int, int]] = []  # transaction, last page, root
        for meta in metas:
            magic, version, _, _ = _META.unpack_from(meta, _PAGE.size)
            if (magic, version) != (_MAGIC, _VERSION):
                raise StoreError(f"LMDB format {magic:#x} version {version}, expected {_MAGIC:#x} {_VERSION}")
            *_, root = _DATABASE.unpack_from(meta, _PAGE.size + _META.size + _DATABASE.size)
            last_page, transaction = _LAST.unpack_from(meta, _PAGE.size + _META_BYTES - _LAST.size)
            found.append((transaction, last_page, root))
        _, self._last_page, newest = max(found)
        return newest

    def _walk(self, number: int, values: Values | None, depth: int) -> None:
        """A page and all below it: of the main database when `values` is `None`, whose entries are the named ones."""
        try:
            if number != _EMPTY:
                self._walk_page(number, values, depth)
        except (StoreError, struct.error) as exc:
            self.tree.problems.append(str(exc))

    def _walk_page(self, number: int, values: Values | None, depth: int) -> None:
        self._visited += 1
        if depth > _DEEPEST or number > self._last_page or self._visited > self._last_page:
            raise StoreError(f"a page leads to page {number}, which cannot be")
        page = self._content[number * self._page_bytes : (number + 1) * self._page_bytes]
        stored, _, flags, lower, _ = _PAGE.unpack_from(page)
        if stored != number or flags not in (_BRANCH, _LEAF) or not _PAGE.size <= lower <= len(page):
            raise StoreError(f"page {number} is none of a tree")
        self.hashed.update(page[:lower])
        for at in struct.unpack_from(f"<{(lower - _PAGE.size) // 2}H", page, _PAGE.size):
            low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
            end = at + _NODE.size + key_bytes
            self.hashed.update(page[at:end])
            if flags == _BRANCH:
                self._walk(low | high << 16 | node_flags << 32, values, depth + 1)
            elif values is None:
                self._enter(bytes(page[at + _NODE.size : end]), node_flags, page[end : end + _DATABASE.size], depth)
            else:
                self._add(
                    values,
                    bytes(page[at + _NODE.size : end]),
                    number * self._page_bytes + end,
                    low | high << 16,
                    large=bool(node_flags & _LARGE),
                )

    def _enter(self, name: bytes, node_flags: int, database: memoryview, depth: int) -> None:
        """A named database."""
        if not node_flags & _SUBDATABASE:
            raise StoreError(f"{name!r} is no database")
        self.hashed.update(database)
        *_, root = _DATABASE.unpack_from(database)
        values = self.tree.databases.setdefault(name.decode("utf-8", "replace"), Values())
        self._walk(root, values, depth + 1)

    def _add(self, values: Values, key: bytes, start: int, size: int, *, large: bool) -> None:
        """A value: in its leaf page, or in pages of its own, whose number is in its place."""
        if large:
            number = self._content[start : start + _PAGE_NUMBER.size]
            self.hashed.update(number)
            start = _PAGE_NUMBER.unpack(number)[0] * self._page_bytes + _PAGE.size
        if start + size > len(self._content):
            raise StoreError(f"the value of {key!r} lies behind the end of the file")
        if values.keys and key <= values.keys[-1]:
            raise StoreError(f"key {key!r} is out of order")
        values.keys.append(key)
        values.starts.append(start)
        values.sizes.append(size)
