"""gc of a store removes what nobody needs, and never what a reader pulls or a writer counts on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from indexer.change.gc import collect_garbage
from kalm_cache.errors import IndexConflictError, UsageError
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.remote import push as pushing
from kalm_cache.generations.remote.collect import collect
from kalm_cache.generations.remote.lease import leased, read_leases
from kalm_cache.generations.remote.pull import pull, pull_into
from kalm_cache.generations.remote.push import push
from kalm_cache.generations.remote.root import FILES, new_token, require_root
from kalm_cache.generations.remote.unpulled import damaged_files, roll_back_remote
from tests.generations.remote.test_push_pull import files_of
from tests.indexer.changes import valid
from tests.object_store.places import Place
from tests.waiting import wait_for

Copy = Callable[..., Path]


def compacted(place: Place, copy: Copy) -> Path:
    """An index of three generations in the store, and the folder after a gc, which left one; not pushed yet."""
    index = copy(3)
    push(place.store(), index)
    collect_garbage(index, keep=0)
    return index


def test_what_no_generation_names_is_removed(place: Place, copy: Copy, tmp_path: Path) -> None:
    index = compacted(place, copy)
    push(place.store(), index)
    before = place.store().list(FILES)
    collected = collect(place.store())
    after = place.store().list(FILES)
    pull(place.store(), tmp_path / "there")
    manifest = open_current(tmp_path / "there").manifest
    assert {name.removeprefix(f"{FILES}/") for name in after} == {
        *(receipt.sha256 for receipt in manifest.files.values()),
        require_root(place.store())[0].live_manifest,
    }
    assert collected.objects == len(before) - len(after) > 0
    assert collected.bytes == sum(one.bytes for one in before.values()) - sum(one.bytes for one in after.values())
    assert require_root(place.store())[0].collecting is None
    assert valid(tmp_path / "there")


def test_what_a_lease_names_stays_until_it_ends(place: Place, copy: Copy, tmp_path: Path) -> None:
    index = copy(3)
    push(place.store(), index)
    root, _ = require_root(place.store())
    with leased(place.store(), root.live, root.live_manifest):
        collect_garbage(index, keep=0)
        push(place.store(), index)
        assert collect(place.store()).leased == ["000003"]
        old = replace(require_root(place.store())[0], live="000003", generations=root.generations)
        found = place.store().get(CURRENT)
        assert place.store().swap(CURRENT, old.to_bytes(), found)  # as it was: every file is still there
        pull(place.store(), tmp_path / "there")
        assert files_of(tmp_path / "there") != files_of(index)
        assert place.store().swap(CURRENT, found.content if found else b"", place.store().get(CURRENT))
    collected = collect(place.store())
    assert (collected.leased, collected.objects > 0) == ([], True)


def test_a_lease_is_over_when_nobody_renewed_it(place: Place, copy: Copy) -> None:
    push(place.store(), copy(1))
    root, _ = require_root(place.store())
    with leased(place.store(), root.live, root.live_manifest):
        now = place.store().info(CURRENT).modified
        (held, over) = read_leases(place.store(), now)
        assert ([lease.generation for lease in held], over) == ([root.live], [])
        held, over = read_leases(place.store(), now.replace(year=now.year + 1))
        assert (held, len(over)) == ([], 1)
    assert read_leases(place.store(), now) == ([], [])


def test_a_writer_that_counted_on_what_gc_removed_uploads_it_again(place: Place, copy: Copy, tmp_path: Path) -> None:
    index = copy(1)
    push(place.store(), index)
    grown = copy(2, "grown")
    store = place.store()
    swap = store.swap

    def late(path: str, content: bytes, expected: object) -> bool:
        store.swap = swap  # type: ignore[method-assign]
        assert collect(place.store()).objects > 0  # what the writer has just uploaded: no generation names it
        return swap(path, content, expected)  # type: ignore[arg-type]

    store.swap = late  # type: ignore[assignment, method-assign]
    push(store, grown)
    assert damaged_files(place.store()) == []
    pull(place.store(), tmp_path / "there")
    assert files_of(tmp_path / "there") == files_of(grown)


def collecting(place: Place) -> None:
    """Make it look as if a gc was deleting."""
    root, found = require_root(place.store())
    assert place.store().swap(CURRENT, replace(root, collecting=new_token()).to_bytes(), found)


def test_a_writer_waits_for_a_gc(place: Place, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "LOOK_SECONDS", 0.01)
    first = copy(1)
    push(place.store(), first)
    before = place.store().get(CURRENT)
    collecting(place)
    grown = copy(2, "grown")
    looks = 0
    store = place.store()
    get = store.get

    def count(path: str, *rest: int) -> object:
        nonlocal looks
        looks += path == CURRENT
        return get(path, *rest)

    store.get = count  # type: ignore[assignment, method-assign]
    writer = threading.Thread(target=push, args=(store, grown))
    writer.start()
    wait_for(lambda: looks > 2)
    assert writer.is_alive()
    assert before is not None
    assert place.store().swap(CURRENT, before.content, place.store().get(CURRENT))
    writer.join()
    assert require_root(place.store())[0].live == "000002"


def test_a_gc_that_died_holds_nobody_up_for_ever(place: Place, copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "COLLECTING_SECONDS", 0.0)
    push(place.store(), copy(1))
    collecting(place)
    with pytest.raises(IndexConflictError, match="run kalm-cache gc again"):
        collect(place.store())
    push(place.store(), copy(2, "grown"))
    root, _ = require_root(place.store())
    assert (root.live, root.collecting) == ("000002", None)


def test_a_rollback_is_one_swap_and_needs_the_files(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(2))
    before, manifest = roll_back_remote(place.store())
    assert (before, manifest.generation, manifest.counts.passages) == ("000002", "000001", 12)
    pull(place.store(), tmp_path / "there")
    assert files_of(tmp_path / "there") == files_of(copy(1, "first"))
    with pytest.raises(UsageError, match="there is no generation 000007"):
        roll_back_remote(place.store(), "7")
    assert roll_back_remote(place.store(), "2")[1].generation == "000002"


def test_a_rollback_during_a_gc_stays(place: Place, copy: Copy) -> None:
    push(place.store(), copy(2))
    store = place.store()
    list_objects = store.list

    def roll_back_first(folder: str) -> object:
        store.list = list_objects  # type: ignore[method-assign]
        roll_back_remote(place.store())
        return list_objects(folder)

    store.list = roll_back_first  # type: ignore[assignment, method-assign]
    assert collect(store).objects == 0
    root, _ = require_root(place.store())
    assert (root.live, root.collecting) == ("000001", None)


def test_who_changes_what_was_rolled_back_meanwhile_is_told(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(2))
    pull_into(place.store(), tmp_path / "mine")
    roll_back_remote(place.store())
    grown = copy(3, "grown")
    (grown / "REMOTE").write_bytes((tmp_path / "mine" / "REMOTE").read_bytes())
    with pytest.raises(IndexConflictError, match="generation 000001 live"):
        push(place.store(), grown)
