"""LMDB files read without LMDB: every value is found where LMDB finds it, and no damage does worse than a problem."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb
import pytest

from kalm_cache.storage.lmdb_pages import Tree, Values, read_tree
from kalm_cache.storage.passage_store import PASSAGES_DATABASES, PASSAGES_FILE, STATES_DATABASES, STATES_FILE

PAGE, KEY_BYTES = 4096, 300


def write(path: Path, count: int, width: int) -> Path:
    """A file of three databases: one of `count` keys so long, one with a value of many pages, one without any."""
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=3, map_size=1 << 26) as environment:
        many, large, _ = (environment.open_db(name) for name in (b"many", b"large", b"none"))
        with environment.begin(write=True) as txn:
            for i in range(count):
                txn.put(b"%0*d" % (width, i), b"value %d" % i, db=many, append=True)
            txn.put(b"key", b"\xaa" * 50_000, db=large)
            txn.put(b"small", b"\xbb", db=large)
            assert txn.stat(many)["depth"] == 3
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "file.lmdb", 12_000, 30)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tree as deep, of fewer and longer keys: it is read hundreds of times."""
    return write(tmp_path_factory.mktemp("pages") / "file.lmdb", 400, KEY_BYTES).read_bytes()


def values_of(content: bytes, values: Values) -> list[tuple[bytes, bytes]]:
    spans = zip(values.keys, values.starts, values.sizes, strict=True)
    return [(key, content[start : start + size]) for key, start, size in spans]


def spoiled(content: bytes, at: int, bit: int) -> Tree:
    """The tree with one bit flipped."""
    return read_tree(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])


def test_every_value_is_found_where_lmdb_finds_it(path: Path):
    content = path.read_bytes()
    tree = read_tree(content)
    assert tree.problems == []
    assert set(tree.databases) == {"many", "large", "none"}
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=3) as environment:
        for name, values in tree.databases.items():
            with environment.begin(db=environment.open_db(name.encode(), create=False)) as txn:
                assert values_of(content, values) == list(txn.cursor())


def test_files_written_in_any_order_and_changed_since_are_read_as_lmdb_reads_them(tmp_path: Path):
    chance, kept = random.Random(0), {}
    with lmdb.open(str(tmp_path / "f"), subdir=False, lock=False, max_dbs=1, map_size=1 << 26) as environment:
        things = environment.open_db(b"things")
        for _ in range(30):
            with environment.begin(write=True, db=things) as txn:
                for _ in range(50):
                    key = b"%d" % chance.randrange(400)
                    kept[key] = chance.randbytes(chance.choice([0, 10, 1000, 2100, 9000]))
                    txn.put(key, kept[key])
                for key in chance.sample(sorted(kept), 10):
                    txn.delete(key)
                    del kept[key]
    content = (tmp_path / "f").read_bytes()
    assert values_of(content, read_tree(content).databases["things"]) == sorted(kept.items())


@pytest.mark.parametrize(("key", "place"), [(b"", None), (b"a", None), (b"b", 0), (b"ba", 0), (b"d", 1), (b"e", 1)])
def test_a_place_is_that_of_the_last_key_that_is_not_behind(key: bytes, place: int | None):
    assert Values([b"b", b"d"]).place_of(key) == place


def test_the_same_file_has_the_same_digest_and_another_entry_another_one(path: Path):
    before = read_tree(path.read_bytes()).digest
    assert len(before) == 64
    assert read_tree(memoryview(path.read_bytes())).digest == before
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=3) as environment:
        many = environment.open_db(b"many")
        with environment.begin(write=True) as txn:
            txn.put(b"one more", b"value", db=many)
    assert read_tree(path.read_bytes()).digest != before


def test_flipped_bits_of_the_tree_change_the_digest_and_those_of_values_do_not(content: bytes):
    before = read_tree(content).digest
    large, page = content.index(b"\xaa" * 100), content.index(b"%0*d" % (KEY_BYTES, 9)) // PAGE * PAGE
    lower = int.from_bytes(content[page + 12 : page + 14], "little")
    first_node = page + int.from_bytes(content[page + 16 : page + 18], "little")
    leading = [*range(page + 10, page + lower, 5), *range(first_node, first_node + 8 + KEY_BYTES)]
    for at in leading:  # flags, offsets, a node and its key
        assert spoiled(content, at, at % 8).digest != before
    values = range(first_node + 8 + KEY_BYTES, first_node + 8 + KEY_BYTES + len(b"value"))
    for at in (*values, large + 5):  # they have checksums of their own
        tree = spoiled(content, at, at % 8)
        assert (tree.digest, tree.problems) == (before, [])


def test_every_flipped_bit_of_both_meta_pages_is_seen(content: bytes):
    before = read_tree(content).digest
    for at in (*range(16 + 136), *range(PAGE, PAGE + 16 + 136)):
        assert spoiled(content, at, at % 8).digest != before


def test_whole_pages_of_noise_hide_what_is_below_them_and_nothing_else(content: bytes):
    chance = random.Random(1)
    valid = {
        key: value for name, values in read_tree(content).databases.items() for key, value in values_of(content, values)
    }
    seen = 0
    for _ in range(40):
        start = chance.randrange(2, len(content) // PAGE) * PAGE
        noisy = content[:start] + chance.randbytes(PAGE) + content[start + PAGE :]
        tree = read_tree(noisy)
        found = [one for values in tree.databases.values() for one in values_of(noisy, values)]
        assert all(valid[key] == value or b"\xaa" in value for key, value in found)
        assert tree.problems or len(found) == len(valid)
        seen += bool(tree.problems and found)
    assert seen > 10


def test_flipped_bits_anywhere_never_do_worse_than_a_problem(content: bytes):
    chance, seen = random.Random(0), 0
    for _ in range(150):
        tree = spoiled(content, chance.randrange(len(content)), chance.randrange(8))
        for values in tree.databases.values():
            ends = [start + size for start, size in zip(values.starts, values.sizes, strict=True)]
            assert all(end <= len(content) for end in ends)
            seen += len(ends)
    assert seen > 100 * 400  # most flips hide nothing


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, bytes(8192), bytes(100)])
def test_what_is_no_lmdb_file_is_a_problem(content: bytes):
    assert read_tree(content).problems != []


@pytest.mark.parametrize("length", [1, 100, PAGE, 2 * PAGE, 100 * PAGE, -1, -PAGE])
def test_a_file_that_was_cut_is_a_problem(path: Path, length: int):
    assert read_tree(path.read_bytes()[:length]).problems != []


def test_a_sealed_segment_is_read_as_the_installed_lmdb_reads_it(folder: Path):
    """Whatever version wrote it: a layout that `lmdb_pages` does not know would show here first."""
    for name, databases in ((STATES_FILE, STATES_DATABASES), (PASSAGES_FILE, PASSAGES_DATABASES)):
        content = (folder / name).read_bytes()
        tree = read_tree(content)
        assert (tree.problems, set(tree.databases)) == ([], set(databases)), f"LMDB {lmdb.version()}"
        with lmdb.open(str(folder / name), subdir=False, readonly=True, lock=False, max_dbs=2) as environment:
            for database, values in tree.databases.items():
                with environment.begin(db=environment.open_db(database.encode(), create=False)) as txn:
                    assert values_of(content, values) == list(txn.cursor()) != []
