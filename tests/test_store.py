"""The passage store over real LMDB files."""

from __future__ import annotations

import zlib
from pathlib import Path

import lmdb
import pytest

from kalm_cache import lmdb_file
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.store import Entry, PassageStore, key_of, pack_text, unpack_text

ENTRIES = [Entry("b", 0, b"record b", "text b"), Entry("ü", 1, b"record u", ""), Entry("a", 2, b"record a", "text a")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed store of three passages."""
    path = tmp_path / "passages.lmdb"
    with PassageStore(path, writable=True) as store:
        store.write(ENTRIES, next_number=3)
    return path


def put_raw(path: Path, database: str, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path), subdir=False, max_dbs=4) as raw:
        db = raw.open_db(database.encode())
        with raw.begin(write=True) as txn:
            txn.put(key, value, db=db)


def test_what_was_written_is_read_back_in_the_order_asked_for(path: Path):
    with PassageStore(path) as store:
        assert len(store) == 3
        assert store.records(["a", "b", "ü"]) == [b"record a", b"record b", b"record u"]
        assert store.texts(["ü", "a"]) == ["", "text a"]
        assert store.doc_ids([2, 0, 2]) == ["a", "b", "a"]
        assert list(store.numbers()) == [(0, "b"), (1, "ü"), (2, "a")]
        assert list(store.keys()) == [b"a", b"b", "ü".encode()]
        assert store.next_number() == 3


def test_ids_that_are_not_there_have_no_record_and_no_text(path: Path):
    unknown = ["", "c", "x" * 600, "\udcff"]  # LMDB itself raises for an empty key
    with PassageStore(path) as store:
        assert store.records(unknown) == [None] * 4
        assert store.texts(unknown) == [None] * 4


def test_a_number_that_is_not_there_is_damage(path: Path):
    with PassageStore(path) as store, pytest.raises(DamagedRecordError, match="number 7 is not there"):
        store.doc_ids([0, 7])


def test_an_empty_store_has_nothing_and_starts_at_number_zero(tmp_path: Path):
    with PassageStore(tmp_path / "passages.lmdb", writable=True) as store:
        assert (len(store), store.next_number(), list(store.scan("records"))) == (0, 0, [])


def test_without_texts_no_text_is_kept(tmp_path: Path):
    with PassageStore(tmp_path / "passages.lmdb", writable=True) as store:
        store.write([Entry("a", 0, b"record", None)], next_number=1)
        assert store.texts(["a"]) == [None]
        assert store.count("texts") == 0


def test_the_file_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    path = tmp_path / "passages.lmdb"
    with PassageStore(path, writable=True) as store:
        for batch in range(5):
            numbers = range(batch * 20, batch * 20 + 20)
            store.write([Entry(f"d{n}", n, bytes([n]) * 10_000, f"text {n}") for n in numbers], numbers[-1] + 1)
    assert path.stat().st_size > 1 << 20
    with PassageStore(path) as store:
        assert store.records([f"d{n}" for n in range(100)]) == [bytes([n]) * 10_000 for n in range(100)]


def test_deleting_works_in_a_full_map_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    with PassageStore(tmp_path / "passages.lmdb", writable=True) as store:
        store.write([Entry(f"d{n}", n, bytes(100), "") for n in range(300)], 300)
        store.delete(f"d{n}" for n in range(0, 300, 2))  # a generator: a second attempt must not find it empty
        assert [number for number, _ in store.numbers()] == list(range(1, 300, 2))


def test_a_batch_is_stored_all_or_not_at_all(path: Path):
    too_long = Entry("x" * 512, 4, b"record", "text")  # LMDB refuses keys beyond 511 bytes
    with PassageStore(path, writable=True) as store:
        with pytest.raises(StoreError, match=r"passages\.lmdb: cannot be written: .*SIZE"):
            store.write([Entry("new", 3, b"record", "text"), too_long], next_number=5)
        assert store.records(["new"]) == [None]
        assert store.texts(["new"]) == [None]
        assert (store.count("numbers"), store.next_number()) == (3, 3)


def test_an_exception_in_a_transaction_stores_nothing(path: Path):
    with PassageStore(path, writable=True) as store:
        with pytest.raises(TypeError):
            store.write([Entry("new", 3, b"record", "text"), Entry("bad", 4, 1.5, "text")], next_number=5)  # type: ignore[arg-type]
        assert store.records(["new"]) == [None]
        assert store.next_number() == 3


def test_writing_again_replaces_record_and_text(path: Path):
    with PassageStore(path, writable=True) as store:
        store.write([Entry("a", 2, b"newer", "newer text")], next_number=3)
        assert (store.records(["a"]), store.texts(["a"]), len(store)) == ([b"newer"], ["newer text"], 3)


def test_deleted_passages_take_record_text_and_number_with_them_and_numbers_are_not_given_again(path: Path):
    with PassageStore(path, writable=True) as store:
        store.delete(["a", "ü", "never there"])
        assert store.records(["a", "b", "ü"]) == [None, b"record b", None]
        assert store.texts(["a", "b", "ü"]) == [None, "text b", None]
        assert list(store.numbers()) == [(0, "b")]
        assert store.next_number() == 3


def test_numbers_beyond_32_bits_sort_and_lead_back(tmp_path: Path):
    numbers = [0, 255, 256, 2**31, 2**32, 2**62]
    with PassageStore(tmp_path / "passages.lmdb", writable=True) as store:
        store.write([Entry(f"d{n}", n, b"record", None) for n in reversed(numbers)], next_number=2**62 + 1)
        assert [number for number, _ in store.numbers()] == numbers
        assert store.doc_ids([2**32]) == [f"d{2**32}"]


def test_reading_leaves_no_lock_file_and_does_not_change_the_file(path: Path):
    for leftover in path.parent.glob("*-lock"):
        leftover.unlink()
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    path.chmod(0o444)
    with PassageStore(path) as store:
        store.records(["a"])
        list(store.numbers())
        with pytest.raises(StoreError, match="cannot be written"):
            store.write([], next_number=9)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [found.name for found in path.parent.iterdir()] == ["passages.lmdb"]


def test_a_store_opens_twice_in_one_process_and_closing_one_leaves_the_other(path: Path):
    first, second = PassageStore(path), PassageStore(path)
    first.close()
    first.close()  # twice is once
    assert second.records(["a"]) == [b"record a"]
    second.close()


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 1000, bytes(8192)])
def test_a_missing_or_foreign_file_is_a_store_error_with_its_name(tmp_path: Path, content: bytes | None):
    path = tmp_path / "passages.lmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"passages\.lmdb: (cannot be opened|not a store)"):
        PassageStore(path)
    assert path.exists() == (content is not None)


def test_a_folder_and_another_lmdb_file_are_store_errors(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be opened"):
        PassageStore(tmp_path)
    put_raw(tmp_path / "other.lmdb", "something", b"key", b"value")
    with pytest.raises(StoreError, match="not a store, or a damaged one; run kalm-cache verify"):
        PassageStore(tmp_path / "other.lmdb")


def test_a_store_in_a_missing_folder_cannot_be_created(tmp_path: Path):
    with pytest.raises(StoreError, match="cannot be opened"):
        PassageStore(tmp_path / "none" / "passages.lmdb", writable=True)


def test_texts_are_compressed_behind_a_checksum_of_key_and_text():
    packed = pack_text(b"key", "words " * 1000)
    assert packed[:4] == zlib.crc32(b"key" + packed[4:]).to_bytes(4, "little")
    assert len(packed) < 100
    assert unpack_text(b"key", packed) == "words " * 1000


def test_every_flipped_bit_truncation_and_other_key_of_a_text_is_detected():
    packed = pack_text(b"key", "some text")
    as_number, size = int.from_bytes(packed, "big"), len(packed)
    spoiled = [(as_number ^ 1 << bit).to_bytes(size, "big") for bit in range(8 * size)]
    for value in [*spoiled, *(packed[:length] for length in range(size))]:
        with pytest.raises(DamagedRecordError, match="text 'key': checksum mismatch"):
            unpack_text(b"key", value)
    with pytest.raises(DamagedRecordError, match="text 'kez'"):
        unpack_text(b"kez", packed)


def test_damaged_texts_and_numbers_are_named(path: Path):
    put_raw(path, "texts", b"a", b"rubbish")
    put_raw(path, "numbers", (9).to_bytes(8, "big"), b"\xff")
    with PassageStore(path) as store:
        with pytest.raises(DamagedRecordError, match="text 'a': checksum mismatch"):
            store.texts(["a"])
        with pytest.raises(DamagedRecordError, match=r"id b'\\xff' is not UTF-8"):
            store.doc_ids([9])
        with pytest.raises(DamagedRecordError, match=r"id b'\\xff' is not UTF-8"):
            list(store.numbers())
    put_raw(path, "numbers", b"\0", b"a")  # sorts before all others
    put_raw(path, "meta", b"next_number", b"3")
    with PassageStore(path) as store:
        with pytest.raises(DamagedRecordError, match=r"number b'\\x00' has 1 bytes, not 8"):
            list(store.numbers())
        with pytest.raises(DamagedRecordError, match="number b'3' has 1 bytes, not 8"):
            store.next_number()


def test_keys_are_the_utf8_of_the_id():
    assert key_of("doc-ü") == b"doc-\xc3\xbc"
