"""Local copies of remote indexes: one pull for all readers, bounded, and nothing that was built is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from indexer.change.add_delete import delete_passages
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexConflictError, IndexLockedError, IndexNotFoundError, StoreError
from kalm_cache.generations.current import current_name
from kalm_cache.generations.generation import open_current, published_names
from kalm_cache.generations.remote import copies
from kalm_cache.generations.remote.copies import CopyCache, RemoteCopy
from kalm_cache.generations.remote.push import push
from kalm_cache.generations.remote.root import require_root
from tests.indexer.changes import texts_of, valid
from tests.indexer.sharded import MANY, answers_of, shards_of
from tests.indexes import build, settings_for
from tests.object_store.places import Place, memory_place

Copy = Callable[..., Path]
ROOMY = 1 << 40


@pytest.fixture
def place() -> Place:
    """Copies do not depend on the kind of store."""
    return memory_place()


def copy_of(place: Place, folder: Path, max_bytes: int = ROOMY) -> RemoteCopy:
    """The local copies of an index, on a machine whose cache is in a folder."""
    return RemoteCopy(place.location, CopyCache(folder, max_bytes), place.store())


def test_readers_get_what_is_live_and_drop_what_nobody_reads(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    remote = copy_of(place, tmp_path / "cache")
    first = remote.refresh()
    assert first is not None and first.passages == 12
    assert remote.refresh() is None
    with PassageIndex.open(remote.reading, device="cpu") as before:
        push(place.store(), copy(2, "grown"))
        remote.refresh()
        assert published_names(remote.reading) == ["000001", "000002"]  # the first is being read
        assert before.search("passage", top_n=3).results
    push(place.store(), copy(3, "shrunk"))
    remote.refresh()
    assert published_names(remote.reading) == ["000003"]
    assert valid(remote.reading)


def test_readers_of_some_shards_pull_these_alone(
    place: Place, mini_folder: Path, embedder_folder: Path, tmp_path: Path
) -> None:
    settings, index = settings_for(mini_folder, embedder_folder), tmp_path / "index"
    build(index, settings, MANY, shards=4)
    push(place.store(), index)
    cache = CopyCache(tmp_path / "cache", ROOMY)
    some = RemoteCopy(place.location, cache, place.store(), shards=(1, 3))
    assert moved_by(some) == len(files_of(index, 1, 3))
    assert sorted(path.name for path in some.reading.glob("generations/*/shards/*")) == ["00001", "00003"]
    assert some.refresh() is None
    with PassageIndex.open(some.reading, device="cpu", shards=(1, 3)) as opened:
        assert len(opened) == shards_of(index)[1] + shards_of(index)[3]
    more = RemoteCopy(place.location, cache, place.store(), shards=(0, 1))
    assert moved_by(more) == len(files_of(index, 0) - files_of(index, 1, 3))  # the files of shard 1 are at hand
    whole = copy_of(place, tmp_path / "cache")
    assert moved_by(whole) == len(files_of(index, 2) - files_of(index, 0, 1, 3))
    assert answers_of(whole.reading) == answers_of(index)
    assert sorted(path.name for path in some.reading.glob("generations/*/shards/*")) == ["00001", "00003"]


def moved_by(remote: RemoteCopy) -> int:
    """Files that a refresh fetches."""
    report = remote.refresh()
    return 0 if report is None else report.moved_files


def files_of(index: Path, *shards: int) -> set[str]:
    """Digests of the files that a reader of these shards needs; equal files are one."""
    files = open_current(index).manifest.files
    others = tuple(f"shards/{number:05d}/" for number in range(4) if number not in shards)
    return {one.sha256 for name, one in files.items() if not name.startswith(others)}


def test_readers_that_come_together_pull_once(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    readers = [copy_of(place, tmp_path / "cache") for _ in range(4)]
    moved: list[int] = []
    threads = [
        threading.Thread(target=lambda reader=reader: moved.append(getattr(reader.refresh(), "moved_bytes", 0)))
        for reader in readers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(receipt.bytes for receipt in open_current(readers[0].reading).manifest.files.values())
    assert sorted(moved) == [0, 0, 0, total]


def test_a_change_is_published_at_the_end_and_readers_take_it_from_there(
    place: Place, copy: Copy, tmp_path: Path
) -> None:
    push(place.store(), copy(2))
    remote = copy_of(place, tmp_path / "cache")
    remote.refresh()
    with remote.changing() as folder:
        delete_passages(["d3"], folder)
        assert require_root(place.store())[0].live == "000002"
    assert require_root(place.store())[0].live == "000003"
    there = copy_of(place, tmp_path / "another machine's")
    pulled = there.refresh()
    assert pulled is not None and pulled.passages == 12
    assert "d3" not in texts_of(there.reading)
    mine = remote.refresh()
    assert mine is not None and mine.moved_bytes == 0  # linked from what was changed here


def test_a_change_that_fails_publishes_nothing(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(2))
    remote = copy_of(place, tmp_path / "cache")
    with pytest.raises(RuntimeError), remote.changing() as folder:
        delete_passages(["d3"], folder)
        raise RuntimeError
    assert require_root(place.store())[0].live == "000002"


def test_what_was_built_and_could_not_be_pushed_is_pushed_by_the_next_change(
    place: Place, copy: Copy, tmp_path: Path
) -> None:
    push(place.store(), copy(2))
    place.faults.plan("PUT", "CURRENT", *["500"] * 4)
    with pytest.raises(StoreError, match="the store failed"), copy_of(place, tmp_path / "cache").changing() as folder:
        delete_passages(["d3"], folder)
    with copy_of(place, tmp_path / "cache").changing() as folder:
        assert require_root(place.store())[0].live == "000003"
        assert "d3" not in texts_of(folder)


def test_what_lost_against_another_writer_is_dropped_and_said(
    place: Place, copy: Copy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(place.store(), copy(2))
    with pytest.raises(IndexConflictError), copy_of(place, tmp_path / "one").changing() as folder:
        delete_passages(["d3"], folder)
        with copy_of(place, tmp_path / "other").changing() as theirs:
            delete_passages(["d5"], theirs)
    with caplog.at_level(logging.WARNING), copy_of(place, tmp_path / "one").changing() as folder:
        delete_passages(["d3"], folder)
    assert "generation 000003 was built here and not published in time: dropped" in caplog.text
    remote = copy_of(place, tmp_path / "cache")
    remote.refresh()
    assert {"d3", "d5"}.isdisjoint(texts_of(remote.reading))
    assert current_name(remote.reading) == "000004"


def test_two_changes_on_one_machine_at_once_are_refused(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    first, second = (copy_of(place, tmp_path / "cache").changing() for _ in range(2))
    with first, pytest.raises(IndexLockedError), second:
        raise AssertionError
    assert require_root(place.store())[0].live == "000001"


def test_an_index_that_is_not_there_can_only_be_made(place: Place, tmp_path: Path) -> None:
    remote = copy_of(place, tmp_path / "cache")
    with pytest.raises(IndexNotFoundError, match="no published index here"), remote.changing():
        raise AssertionError
    with remote.changing(create=True) as folder:
        assert not folder.exists()  # nothing was built: nothing is published
    assert place.store().get("CURRENT") is None


def test_an_index_made_anew_at_the_same_url_is_another_one(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    remote = copy_of(place, tmp_path / "cache")
    with remote.changing():
        pass
    store = place.store()
    store.delete([*store.list("files"), "CURRENT"])
    push(place.store(), copy(1, "anew"))
    with copy_of(place, tmp_path / "cache").changing() as folder:
        delete_passages(["d3"], folder)
    assert require_root(place.store())[0].live == "000002"


def test_copies_are_bounded_and_the_one_unused_for_longest_goes(
    place: Place, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(place.store(), copy(1))
    cache = tmp_path / "cache"
    size = sum(receipt.bytes for receipt in open_current(tmp_path / "index").manifest.files.values())
    with pytest.raises(StoreError, match=r"GiB more do not fit .* raise cache_gib, or name another cache_folder"):
        copy_of(place, cache, size // 2).refresh()
    copy_of(place, cache, 2 * size).refresh()
    other = Place(f"memory://{tmp_path.name}")
    push(other.store(), tmp_path / "index")
    with PassageIndex.open(copy_of(place, cache).reading, device="cpu"), pytest.raises(StoreError):
        copy_of(other, cache, size + size // 2).refresh()  # what is being read stays
    copy_of(other, cache, size + size // 2).refresh()
    assert not copy_of(place, cache).home.exists()
    assert valid(copy_of(other, cache).reading)


def test_copies_on_a_network_file_system_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "file_system_of", lambda path: "nfs4")
    with pytest.raises(StoreError, match=r"is on a network file system \(nfs4\); use a local disk"):
        RemoteCopy(Place("memory://nowhere").location, CopyCache(tmp_path, ROOMY))
