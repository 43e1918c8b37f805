"""What is put is found again, by whom it may be, for as long as it may be; no write is ever waited for."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kalm_cache.errors import StoreError, UsageError
from kalm_cache.process.system import file_system_of
from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.text_cache import TextCache
from tests.storage.text_cache.conftest import MIB, OpenCache, found, put, record_of

MODEL = {"model": "a" * 64, "chunk_size": 4}


def test_a_key_is_the_sha256_of_namespace_kind_and_content(open_cache: OpenCache) -> None:
    namespace = open_cache().namespace(MODEL)
    assert namespace.key(b"t", b"text") == hashlib.sha256(namespace.digest + b"ttext").digest()
    assert namespace.digest == open_cache().namespace(dict(reversed(MODEL.items()))).digest


def test_what_was_put_is_found_by_this_process_and_by_the_next(open_cache: OpenCache) -> None:
    cache = open_cache()
    namespace = cache.namespace(MODEL)
    assert found(cache, namespace, "a", "b") == []
    put(cache, namespace, "a", "b")
    assert found(cache, namespace, "a", "x", "b") == ["a", "b"]
    cache.close()
    again = open_cache()
    assert found(again, again.namespace(MODEL), "b", "a") == ["b", "a"]
    assert (again.counts.hits, again.counts.misses) == (2, 0)


def test_what_waits_to_be_written_is_found_already(open_cache: OpenCache) -> None:
    cache = open_cache()
    namespace = cache.namespace(MODEL)
    cache.put(namespace.key(b"t", b"a"), 1000, lambda: record_of("a"))
    assert found(cache, namespace, "a") == ["a"]  # whether the thread has come to it or not


def test_another_namespace_or_secret_finds_nothing(open_cache: OpenCache) -> None:
    cache = open_cache()
    put(cache, cache.namespace(MODEL), "a")
    assert found(cache, cache.namespace(MODEL | {"chunk_size": 8}), "a") == []
    cache.close()
    tenant = open_cache(secret=b"mine")
    assert found(tenant, tenant.namespace(MODEL), "a") == []
    put(tenant, tenant.namespace(MODEL), "a")
    assert found(tenant, tenant.namespace(MODEL), "a") == ["a"]


def test_the_file_never_outgrows_its_limit_and_the_newest_records_stay(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache(max_bytes=16 * MIB)
    namespace = cache.namespace(MODEL)
    sizes = []
    for batch in range(12):  # 36 MB in all
        put(cache, namespace, *(f"{batch}-{i}" for i in range(100)), nbytes=30_000)
        sizes.append(sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.mdb")))
    assert max(sizes) <= 16 * MIB
    assert max(sizes) > 14 * MIB
    newest = [f"11-{i}" for i in range(100)]
    assert found(cache, namespace, *newest) == newest
    assert found(cache, namespace, *(f"0-{i}" for i in range(100))) == []
    assert cache.counts.evicted >= 700
    assert cache.counts.dropped == 0


def test_what_is_used_stays_while_what_is_not_leaves(open_cache: OpenCache) -> None:
    cache = open_cache(max_bytes=16 * MIB)
    namespace = cache.namespace(MODEL)
    put(cache, namespace, "used", "unused", nbytes=30_000)
    for batch in range(12):
        put(cache, namespace, *(f"{batch}-{i}" for i in range(100)), nbytes=30_000)
        assert found(cache, namespace, "used") == ["used"]
        cache.flush()
    assert found(cache, namespace, "unused") == []


def test_a_record_serves_no_longer_than_its_time_to_live_however_often_it_is_used(open_cache: OpenCache) -> None:
    now = [1_000_000.0]
    cache = open_cache(clock=lambda: now[0], ttl_seconds=60)
    namespace = cache.namespace(MODEL)
    put(cache, namespace, "a")
    now[0] += 59
    assert found(cache, namespace, "a") == ["a"]
    now[0] += 2
    assert found(cache, namespace, "a") == []
    assert cache.counts.expired == 1
    put(cache, namespace, "a")  # computed again
    assert found(cache, namespace, "a") == ["a"]


def test_a_full_queue_drops_and_counts_rather_than_wait(open_cache: OpenCache) -> None:
    cache = open_cache(queue_bytes=2500)
    namespace = cache.namespace(MODEL)
    for name in "abcd":
        cache.put(namespace.key(b"t", name.encode()), 1000, lambda name=name: record_of(name))
    assert cache.counts.dropped >= 1
    cache.flush()
    assert cache.counts.written + cache.counts.dropped == 4


def test_a_folder_that_cannot_be_written_turns_caching_off_with_one_warning(
    open_cache: OpenCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = open_cache(folder=tmp_path / "file" / "cache")  # not even root can make it
    namespace = cache.namespace(MODEL)
    with caplog.at_level(logging.WARNING):
        put(cache, namespace, "a")
        put(cache, namespace, "b")
        assert found(cache, namespace, "a", "b") == []
    assert len(caplog.records) == 1
    assert "no longer cached" in caplog.text
    assert "Not a directory" in cache.counts.off


def test_a_forked_child_reads_and_writes_on_its_own(open_cache: OpenCache) -> None:
    cache = open_cache()
    namespace = cache.namespace(MODEL)
    put(cache, namespace, "parent")

    def child() -> None:
        assert found(cache, namespace, "parent") == ["parent"]
        put(cache, namespace, "child")
        cache.close()
        os._exit(7)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 7
    assert found(cache, namespace, "parent", "child") == ["parent", "child"]


def test_two_caches_on_one_folder_share_records(open_cache: OpenCache) -> None:
    one, folder = open_cache(), open_cache().options.folder
    put(one, one.namespace(MODEL), "a")
    script = (
        "import sys; from pathlib import Path\n"
        "from kalm_cache.storage.text_cache.text_cache import *\n"
        "from tests.storage.text_cache.conftest import *\n"
        "with TextCache(TextCacheOptions(Path(sys.argv[1]), 64 << 20)) as cache:\n"
        f"    namespace = cache.namespace({MODEL!r})\n"
        "    print(found(cache, namespace, 'a')); put(cache, namespace, 'b')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "['a']\n"
    assert found(one, one.namespace(MODEL), "a", "b") == ["a", "b"]


def test_sizes_and_times_that_make_no_sense_are_refused(open_cache: OpenCache) -> None:
    with pytest.raises(UsageError, match="16 MiB"):
        open_cache(max_bytes=1)
    with pytest.raises(UsageError, match="above 0"):
        open_cache(ttl_seconds=0)


def test_a_network_file_system_is_refused_unless_told_otherwise(
    open_cache: OpenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / {tmp_path / 'cache'} rw - nfs4 host:/x rw\n")
    monkeypatch.setattr("kalm_cache.process.system.MOUNTS", mounts)
    with pytest.raises(StoreError, match="network file system \\(nfs4\\)"):
        open_cache()
    assert isinstance(open_cache(any_file_system=True), TextCache)
    assert isinstance(open_cache(folder=tmp_path / "beside"), TextCache)


def test_the_innermost_mount_names_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:9 / /a\\040b rw shared:1 - fuse.sshfs h rw\n")
    monkeypatch.setattr("kalm_cache.process.system.MOUNTS", mounts)
    assert file_system_of(Path("/a b/c")) == "fuse.sshfs"
    assert file_system_of(Path("/a bc")) == "ext4"


def test_a_record_that_cannot_be_made_is_dropped_and_the_others_are_kept(open_cache: OpenCache) -> None:
    def fail() -> Record:
        raise StoreError("codec fp16: a state is not finite")

    cache = open_cache()
    namespace = cache.namespace({"model": "a"})
    unmade = namespace.key(b"t", b"unmade")
    cache.put(unmade, 1000, fail)
    assert cache.find([unmade]) == [None]  # as long as it waits, too
    put(cache, namespace, "a", "b")
    assert found(cache, namespace, "a", "b") == ["a", "b"]
    assert (cache.counts.dropped, cache.counts.written, cache.counts.off) == (1, 2, "")


def test_a_file_and_the_folder_of_an_index_are_no_place_for_a_cache(open_cache: OpenCache, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "CURRENT").touch()
    for name, why in (("file", "is a file"), ("index", "is the folder of an index")):
        with pytest.raises(UsageError, match=why):
            open_cache(folder=tmp_path / name)
