"""What is written into a store is read back: records, texts, numbers, by many readers."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage import lmdb_file
from kalm_cache.storage.content_lookup import CONTENTS_FILE
from kalm_cache.storage.passage_store import (
    PASSAGES_FILE,
    SEAL_FILE,
    STATES_FILE,
    PassageMeta,
    PassageStore,
)
from kalm_cache.storage.record import Record
from tests.storage.three_passages import HASHES, PASSAGES, records
from tests.stores import (
    Stored,
    read_contents,
    record,
    write_store,
)


def test_what_was_written_is_read_back_in_the_order_asked_for(folder: Path):
    with PassageStore(folder) as store:
        assert len(store) == 3
        assert records(store, "a", "ü", "a") == [PASSAGES["a"].record, PASSAGES["ü"].record, PASSAGES["a"].record]
        assert store.metas(["ü", "a"]) == [PassageMeta(1, bytes(16)), PassageMeta(2, HASHES["a"])]
        assert store.texts(["ü", "a"]) == ["", "text a"]
        assert store.doc_ids([2, 0, 2]) == ["a", "b", "a"]
        assert list(store.ordinals()) == [(0, "b"), (1, "ü"), (2, "a")]
        assert list(store.keys()) == [b"a", b"b", "ü".encode()]
        assert store.next_ordinal() == 3


def test_payloads_are_views_of_the_map(folder: Path):
    with PassageStore(folder) as store, store.snapshot() as snapshot:
        (found,) = snapshot.records(["a"])
        assert isinstance(found, Record)
        assert isinstance(found.payload, memoryview)
        assert found.payload.readonly


def test_ids_that_are_not_there_have_no_record_and_no_text(folder: Path):
    unknown = ["", "c", "0", "zz", "aa", "x" * 600, "\udcff"]  # LMDB itself raises for an empty key
    with PassageStore(folder) as store:
        assert records(store, *unknown) == [None] * len(unknown)
        assert store.texts(unknown) == [None] * len(unknown)
        assert store.metas(unknown) == [None] * len(unknown)


def test_a_number_that_is_not_there_is_damage_and_does_not_hide_the_others(folder: Path):
    with PassageStore(folder) as store:
        with pytest.raises(DamagedRecordError, match=r"passages\.lmdb: ordinal 7 is not there; run kalm-cache verify"):
            store.doc_ids([0, 7])
        first, second = store.find_doc_ids([0, 7])
        assert (first, str(second)) == ("b", f"{folder / PASSAGES_FILE}: ordinal 7 is not there; run kalm-cache verify")


def test_an_empty_store_has_nothing(tmp_path: Path):
    write_store(tmp_path, {})
    with PassageStore(tmp_path) as store:
        assert (len(store), store.next_ordinal(), list(store.keys()), list(store.ordinals())) == (0, 0, [], [])
        assert records(store, "a") == [None]
        assert store.texts(["a"]) == [None]


def test_without_texts_no_text_is_kept(tmp_path: Path):
    write_store(tmp_path, {"a": Stored(record(), PassageMeta(0, bytes(16)), None)})
    with PassageStore(tmp_path) as store:
        assert store.texts(["a"]) == [None]


def test_numbers_beyond_32_bits_sort_and_lead_back(tmp_path: Path):
    ordinals = [0, 255, 256, 2**31, 2**32, 2**62]
    write_store(tmp_path, {f"d{n}": Stored(record(), PassageMeta(n, bytes(16))) for n in ordinals}, 2**62 + 1)
    with PassageStore(tmp_path) as store:
        assert [ordinal for ordinal, _ in store.ordinals()] == ordinals
        assert store.doc_ids([2**32]) == [f"d{2**32}"]
        assert store.next_ordinal() == 2**62 + 1


def test_records_of_other_shapes_stand_in_blocks_of_their_own(tmp_path: Path):
    stored = {
        f"d{i}": Stored(record(bytes([i]), width=8 + i % 2, codec=i % 3), PassageMeta(i, b"h" * 16)) for i in range(9)
    }
    write_store(tmp_path, stored)
    with PassageStore(tmp_path) as store:
        assert records(store, *stored) == [one.record for one in stored.values()]


def test_a_store_larger_than_its_first_map_and_many_blocks_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    stored = {
        f"d{n}": Stored(record(bytes([n % 256]) * 10_000), PassageMeta(n, bytes(16)), f"text {n}") for n in range(300)
    }
    write_store(tmp_path, stored)
    with PassageStore(tmp_path) as store:
        assert records(store, *stored) == [one.record for one in stored.values()]
        assert store.texts(list(stored)) == [one.text for one in stored.values()]
        assert list(store.keys()) == sorted(map(str.encode, stored))


def test_reading_leaves_no_lock_file_and_does_not_change_the_files(folder: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert sorted(path.name for path in before) == [CONTENTS_FILE, PASSAGES_FILE, STATES_FILE, SEAL_FILE]
    for path in before:
        path.chmod(0o444)
    with PassageStore(folder) as store:
        records(store, "a")
        list(store.ordinals())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_views_outlive_the_store(folder: Path):
    store = PassageStore(folder)
    with store.snapshot() as snapshot:
        (found,) = snapshot.records(["a"])
    store.close()
    assert isinstance(found, Record)
    assert bytes(found.payload) == b"states of a"


def test_a_forked_child_reads_what_its_parent_has_open(folder: Path):
    with PassageStore(folder) as store:
        child = os.fork()
        if child == 0:
            with PassageStore(folder) as own:
                os._exit(0 if own.texts(["a"]) == store.texts(["a"]) == ["text a"] else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_many_threads_open_read_and_close_one_store(folder: Path):
    def read_often(_: int) -> list[object]:
        seen: list[object] = []
        for _ in range(20):
            with PassageStore(folder) as store:
                seen += records(store, "b")
        return seen

    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(read_often, range(8))] == [[PASSAGES["b"].record] * 20] * 8


def test_a_store_that_takes_the_place_of_an_open_one_is_not_taken_for_it(folder: Path, tmp_path: Path):
    with PassageStore(folder) as store:
        folder.rename(tmp_path / "moved")
        write_store(folder, {"new": Stored(record(b"new"), PassageMeta(0, bytes(16)))})
        assert records(store, "a", "new") == [PASSAGES["a"].record, None]
        with PassageStore(folder) as newer:
            assert records(newer, "new") == [record(b"new")]


def test_a_store_opens_twice_in_one_process_and_closing_one_leaves_the_other(folder: Path):
    first, second = PassageStore(folder), PassageStore(folder)
    first.close()
    first.close()  # twice is once
    assert second.texts(["a"]) == ["text a"]
    second.close()
    with pytest.raises(StoreError, match=r"passages\.lmdb: was closed"):
        second.texts(["a"])


def test_the_same_passages_make_the_same_seal_and_the_same_contents(tmp_path: Path, folder: Path):
    write_store(tmp_path / "again", PASSAGES)
    assert read_contents(tmp_path / "again") == read_contents(folder)
    assert (tmp_path / "again" / STATES_FILE).read_bytes() == (folder / STATES_FILE).read_bytes()
