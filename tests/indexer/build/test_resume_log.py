"""What a build has encoded so far: all of a batch or nothing, and nothing that is damaged."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np
import pytest

from indexer.build.unfinished.resume_log import EncodedPassage, Reservations, ResumeLog, verify_checksum, with_checksum
from kalm_cache.errors import DamagedRecordError, StoreError
from kalm_cache.storage import lmdb_file
from kalm_cache.storage.passage_store import PassageMeta
from tests.stores import record

VECTOR = np.arange(4, dtype=np.float32)


def encoded(doc_id: str, ordinal: int, payload: bytes = b"payload") -> EncodedPassage:
    return EncodedPassage(doc_id, PassageMeta(ordinal, b"h" * 16), record(payload), VECTOR + ordinal)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "working.lmdb"
    with ResumeLog(path) as log:
        log.write([encoded("b", 0), encoded("a", 1, b"")], next_ordinal=2)
    return path


def spoil(path: Path, database: str, key: bytes, at: int) -> None:
    with lmdb.open(str(path), subdir=False, max_dbs=3) as raw:
        db = raw.open_db(database.encode())
        with raw.begin(write=True) as txn:
            value = bytearray(txn.get(key, db=db))
            value[at] ^= 1
            txn.put(key, bytes(value), db=db)


def test_what_was_written_is_read_back(path: Path):
    with ResumeLog(path) as log:
        assert (len(log), log.next_ordinal(), list(log.keys())) == (2, 2, [b"a", b"b"])
        assert log.metas(["b", "c", "a"]) == [PassageMeta(0, b"h" * 16), None, PassageMeta(1, b"h" * 16)]
        meta, found = log.get(b"b")
        assert (meta, found._replace(payload=bytes(found.payload))) == (PassageMeta(0, b"h" * 16), record())
        assert np.array_equal(log.vectors([b"b", b"a"]), [VECTOR, VECTOR + 1])


def test_a_batch_is_stored_all_or_not_at_all(path: Path):
    with ResumeLog(path) as log:
        with pytest.raises(StoreError, match="cannot be written"):
            log.write([encoded("new", 2), encoded("x" * 512, 3)], next_ordinal=4)  # LMDB refuses the key
        assert (len(log), log.next_ordinal()) == (2, 2)
        assert log.metas(["new"]) == [None]


def test_writing_again_replaces_a_passage(path: Path):
    with ResumeLog(path) as log:
        log.write([encoded("a", 1, b"newer")], next_ordinal=2)
        assert bytes(log.get(b"a")[1].payload) == b"newer"
        assert len(log) == 2


@pytest.mark.parametrize("database", ["records", "vectors"])
@pytest.mark.parametrize("at", [0, 3, 5, -1])
def test_a_passage_whose_record_or_vector_is_damaged_counts_as_not_stored(path: Path, database: str, at: int):
    spoil(path, database, b"b", at)
    with ResumeLog(path) as log:
        assert log.metas(["a", "b"]) == [PassageMeta(1, b"h" * 16), None]
        with pytest.raises(DamagedRecordError, match="'b' of an unfinished build: checksum mismatch"):
            log.get(b"b") if database == "records" else log.vectors([b"b"])


def test_the_file_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    with ResumeLog(tmp_path / "working.lmdb") as log:
        for batch in range(5):
            ordinals = range(batch * 20, batch * 20 + 20)
            log.write([encoded(f"d{n}", n, bytes([n]) * 10_000) for n in ordinals], ordinals[-1] + 1)
        assert [bytes(log.get(b"d%d" % n)[1].payload) for n in (0, 57, 99)] == [
            bytes([n]) * 10_000 for n in (0, 57, 99)
        ]


def test_every_flipped_bit_truncation_and_other_key_of_a_value_is_detected():
    value = with_checksum(b"key", b"content")
    assert verify_checksum(b"key", value) == b"content"
    spoiled = [
        value[:at] + bytes([value[at] ^ 1 << bit]) + value[at + 1 :] for at in range(len(value)) for bit in range(8)
    ]
    for one in [*spoiled, *(value[:length] for length in range(len(value)))]:
        with pytest.raises(DamagedRecordError):
            verify_checksum(b"key", one)
    with pytest.raises(DamagedRecordError):
        verify_checksum(b"kez", value)


def test_ids_keep_the_ordinals_that_they_were_given_and_others_get_the_next(tmp_path: Path):
    path = tmp_path / "ordinals.lmdb"
    with Reservations(path, first=5) as reserved:
        assert (reserved.reserve([]), path.exists()) == ([], False)
        assert reserved.reserve(["x", "y"]) == [5, 6]
        assert reserved.reserve(["z", "x", "w"]) == [7, 5, 8]
    with Reservations(path, first=2) as again:
        assert (again.next, again.reserve(["w", "v"])) == (9, [8, 9])
    with Reservations(path, first=40) as later:
        assert (later.reserve(["y", "u"]), later.next) == ([6, 40], 41)
