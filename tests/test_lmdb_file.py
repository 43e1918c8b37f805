"""LMDB files within one process: growth, sharing among readers, and errors with the file's name."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import lmdb
import pytest

from kalm_cache import lmdb_file
from kalm_cache.errors import StoreError
from kalm_cache.lmdb_file import LmdbFile, join_readers, leave_readers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one entry, `key` -> `value`."""
    path = tmp_path / "file.lmdb"
    write_file(path, b"value")
    return path


def write_file(path: Path, value: bytes) -> None:
    file = LmdbFile(path, ["entries"], writable=True)
    file.write(lambda txn: txn.put(b"key", value, db=file["entries"]))
    file.close()


def value_in(file: LmdbFile) -> bytes | None:
    with file.reading("entries") as txn:
        return txn.get(b"key")


def test_the_map_doubles_until_a_transaction_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lmdb_file, "INITIAL_MAP_BYTES", 64 << 10)
    file = LmdbFile(tmp_path / "file.lmdb", ["entries"], writable=True)
    calls = []

    def put_much(txn: lmdb.Transaction[bytes]) -> str:
        calls.append(len(calls))
        for number in range(100):
            txn.put(b"%03d" % number, bytes(10_000), db=file["entries"])
        return "done"

    assert file.write(put_much) == "done"
    assert len(calls) > 3
    with file.reading("entries") as txn:
        assert txn.stat(file["entries"])["entries"] == 100
    file.close()


def test_readers_of_one_process_share_a_file_until_the_last_one_leaves(path: Path, tmp_path: Path):
    (tmp_path / "link.lmdb").symlink_to(path)
    first = join_readers(path, ["entries"])
    second = join_readers(tmp_path / "link.lmdb", ["entries"])
    assert second is first
    leave_readers(first)
    assert value_in(second) == b"value"
    leave_readers(second)
    with pytest.raises(StoreError):
        value_in(second)
    again = join_readers(path, ["entries"])  # and it opens again
    assert value_in(again) == b"value"
    leave_readers(again)


def test_many_threads_open_read_and_close_one_file(path: Path):
    seen = []

    def read_often() -> None:
        for _ in range(50):
            file = join_readers(path, ["entries"])
            seen.append(value_in(file))
            leave_readers(file)

    threads = [Thread(target=read_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [b"value"] * 400


def test_a_forked_child_reads_what_its_parent_has_open(path: Path):
    file = join_readers(path, ["entries"])
    child = os.fork()
    if child == 0:
        joined = join_readers(path, ["entries"])
        os._exit(0 if value_in(joined) == value_in(file) == b"value" else 1)
    assert os.waitpid(child, 0)[1] == 0
    leave_readers(file)


def test_a_file_that_took_the_place_of_an_open_one_is_not_taken_for_it(path: Path, tmp_path: Path):
    file = join_readers(path, ["entries"])
    write_file(tmp_path / "new.lmdb", b"other")
    (tmp_path / "new.lmdb").replace(path)
    with pytest.raises(StoreError, match=r"file\.lmdb: was replaced while an index of this process has it open"):
        join_readers(path, ["entries"])
    assert value_in(file) == b"value"
    leave_readers(file)
    newer = join_readers(path, ["entries"])
    assert value_in(newer) == b"other"
    leave_readers(newer)


def test_a_failed_open_leaves_nothing_open(path: Path):
    with pytest.raises(StoreError, match="not a store, or a damaged one"):
        join_readers(path, ["entries", "absent"])
    file = join_readers(path, ["entries"])
    assert value_in(file) == b"value"
    leave_readers(file)


def test_writing_the_file_that_is_being_written_is_a_store_error(path: Path):
    file = LmdbFile(path, ["entries"], writable=True)
    with pytest.raises(StoreError, match="already open"):
        LmdbFile(path, ["entries"], writable=True)
    file.close()


def test_a_full_disk_is_a_store_error_and_keeps_what_was_written(path: Path):
    import resource
    import signal

    child = os.fork()
    if child == 0:  # the limit on file sizes cannot be lifted again, so that it is set in a child
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        file = LmdbFile(path, ["entries"], writable=True)
        try:
            file.write(lambda txn: txn.put(b"much", bytes(4 << 20), db=file["entries"]))
        except StoreError as exc:
            os._exit(0 if "cannot be written" in str(exc) and value_in(file) == b"value" else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    file = join_readers(path, ["entries"])
    assert value_in(file) == b"value"
    leave_readers(file)
