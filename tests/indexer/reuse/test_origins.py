"""Sealed segments as sources: what they vouch for, and entries in rising order."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.reuse.origins import RisingReader, SealedSegment
from kalm_cache.errors import StoreError
from kalm_cache.storage import store_writer
from kalm_cache.storage.block_file import BlockWriter
from kalm_cache.storage.passage_store import PassageMeta, PassageStore
from tests.stores import Stored, damage_record, damage_text, record, write_store

PASSAGES = {
    f"d{i:03d}": Stored(record(b"states of %d" % i), PassageMeta(i, bytes(16)), f"text {i}") for i in range(100)
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of blocks of a few passages each."""
    monkeypatch.setattr(store_writer, "BlockWriter", lambda *args: BlockWriter(*args, block_bytes=300))
    write_store(tmp_path, PASSAGES)
    return tmp_path


def test_a_passage_with_a_damaged_record_or_text_counts_as_not_there(folder: Path):
    damage_record(folder, "d003")
    damage_text(folder, "d004")
    with PassageStore(folder) as store:
        found = SealedSegment(store, None).metas(["d002", "d003", "d004", "d005", "none"])
    assert found == [PassageMeta(2, bytes(16)), None, None, PassageMeta(5, bytes(16)), None]


@pytest.mark.parametrize("step", [1, 2, 7, 99])
def test_entries_are_read_in_rising_order_with_or_without_gaps(folder: Path, step: int):
    with PassageStore(folder) as store, store.reading() as (states, passages):
        reader, beside = RisingReader(states), RisingReader(passages)
        for doc_id in list(PASSAGES)[::step]:
            common, entry = reader.entry(doc_id.encode())
            stored = PASSAGES[doc_id].record
            assert (common, entry.fields, bytes(entry.payload)) == (stored.common, stored.fields, stored.payload)
            assert beside.entry(doc_id.encode())[1].fields == PASSAGES[doc_id].meta.pack()


@pytest.mark.parametrize("key", [b"a", b"d0005", b"d099x", b"z"])
def test_a_key_that_is_not_there_is_an_error(folder: Path, key: bytes):
    with (
        PassageStore(folder) as store,
        store.reading() as (states, _),
        pytest.raises(StoreError, match="run the job again"),
    ):
        RisingReader(states).entry(key)


def test_what_is_damaged_is_not_copied(folder: Path):
    damage_record(folder, "d050")
    with PassageStore(folder) as store, store.reading() as (states, _):
        reader = RisingReader(states)
        reader.entry(b"d049")
        with pytest.raises(StoreError, match="run the job again: record 'd050': checksum mismatch"):
            reader.entry(b"d050")
        assert bytes(reader.entry(b"d051")[1].payload) == b"states of 51"
