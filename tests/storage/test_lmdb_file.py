"""LMDB files while they are written: growth, and errors with the file's name."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
import pytest

from kalm_cache.errors import StoreError
from kalm_cache.storage import lmdb_file
from kalm_cache.storage.lmdb_file import LmdbFile


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


def value_in(path: Path) -> bytes | None:
    file = LmdbFile(path, ["entries"], writable=False)
    with file.reading("entries") as txn:
        value: bytes | None = txn.get(b"key")
    file.close()
    return value


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


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 1000, bytes(8192)])
def test_a_missing_or_foreign_file_is_a_store_error_with_its_name(tmp_path: Path, content: bytes | None):
    path = tmp_path / "file.lmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=r"file\.lmdb: (cannot be opened|not a store)"):
        LmdbFile(path, ["entries"], writable=False)
    assert path.exists() == (content is not None)


def test_a_file_without_its_databases_and_a_folder_are_store_errors(path: Path, tmp_path: Path):
    with pytest.raises(StoreError, match="not a store, or a damaged one; run kalm-cache verify"):
        LmdbFile(path, ["entries", "absent"], writable=False)
    with pytest.raises(StoreError, match="cannot be opened"):
        LmdbFile(tmp_path, ["entries"], writable=True)
    assert value_in(path) == b"value"


def test_an_exception_in_a_transaction_stores_nothing(path: Path):
    file = LmdbFile(path, ["entries"], writable=True)

    def fail(txn: lmdb.Transaction[bytes]) -> None:
        txn.put(b"key", b"other", db=file["entries"])
        raise TypeError

    with pytest.raises(TypeError):
        file.write(fail)
    file.close()
    assert value_in(path) == b"value"


def test_writing_what_lmdb_refuses_is_a_store_error(path: Path):
    file = LmdbFile(path, ["entries"], writable=True)
    with pytest.raises(StoreError, match=r"file\.lmdb: cannot be written: .*SIZE"):
        file.write(lambda txn: txn.put(b"x" * 512, b"value", db=file["entries"]))
    file.close()


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
            os._exit(0 if "cannot be written" in str(exc) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert value_in(path) == b"value"


def test_without_a_lock_no_lock_file_is_made(tmp_path: Path):
    file = LmdbFile(tmp_path / "file.lmdb", ["entries"], writable=True, durable=False, lock=False)
    file.write(lambda txn: txn.put(b"key", b"value", db=file["entries"]))
    file.close()
    assert [found.name for found in tmp_path.iterdir()] == ["file.lmdb"]
    assert value_in(tmp_path / "file.lmdb") == b"value"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
def test_a_scan_has_every_entry_once_and_holds_no_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
):
    monkeypatch.setattr(lmdb_file, "SCAN", 3)
    file = LmdbFile(tmp_path / "file.lmdb", ["entries"], writable=True)
    expected = sorted((bytes([65 + number]) * (511 if number % 2 else 1), b"%d" % number) for number in range(count))

    def put_all(txn: lmdb.Transaction[bytes]) -> None:
        for key, value in expected:
            txn.put(key, value, db=file["entries"])

    file.write(put_all)
    found = []
    for entry in file.scan("entries"):
        file.write(lambda txn, name=entry[0]: txn.put(name, b"new", db=file["entries"]))
        found.append(entry[0])
    assert found == [key for key, _ in expected]
    file.close()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is mapped is read from /proc")
def test_what_was_touched_of_a_large_file_is_not_kept_mapped(tmp_path: Path):
    path, count = tmp_path / "file.lmdb", 60_000
    file = LmdbFile(path, ["entries"], writable=True, durable=False)
    for start in range(0, count, 1000):

        def put_some(txn: lmdb.Transaction[bytes], start: int = start) -> None:
            for number in range(start, start + 1000):
                txn.put(b"%06d" % (number * 7919 % count), bytes(1500), db=file["entries"])

        file.write(put_some)
    for number in range(0, count, 3):
        with file.reading("entries") as txn:
            assert txn.get(b"%06d" % number) == bytes(1500)
    assert path.stat().st_size > 90 << 20
    assert mapped_bytes(path) < 80 << 20
    with file.reading("entries"):  # what is being read stays where it is
        file.write(lambda txn: txn.get(b"0"))
    file.close()


def mapped_bytes(path: Path) -> int:
    """What is resident of the process's map of a file."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    resident = 0
    for line in lines:
        if line.endswith(str(path)):
            resident += next(int(one.split()[1]) for one in lines if one.startswith("Rss:")) << 10
    return resident
