"""Whatever a store or the network does, an index is published whole, once, or not at all. On every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from kalm_cache.errors import IndexConflictError, StoreError
from kalm_cache.generations.current import current_name
from kalm_cache.generations.remote.pull import pull
from kalm_cache.generations.remote.push import push
from kalm_cache.generations.remote.root import require_root
from tests.generations.remote.test_push_pull import files_of
from tests.indexer.changes import valid
from tests.object_store.faults import KINDS
from tests.object_store.places import Place

Copy = Callable[..., Path]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pull_takes_any_fault_once(place: Place, copy: Copy, tmp_path: Path, kind: str) -> None:
    index, there = copy(1), tmp_path / "there"
    push(place.store(), index)
    place.faults.plan("GET", "files/", kind, kind)
    place.faults.plan("GET", "CURRENT", *((kind,) if kind != "truncated" else ()))
    pull(place.store(), there)
    assert place.faults.met >= 2
    assert files_of(there) == files_of(index)


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_takes_any_fault_once(place: Place, copy: Copy, tmp_path: Path, kind: str) -> None:
    index = copy(1)
    place.faults.plan("PUT", "files/", kind, kind)
    place.faults.plan("PUT", "CURRENT", kind)
    push(place.store(), index)
    assert place.faults.met == 3
    pull(place.store(), tmp_path / "there")
    assert files_of(tmp_path / "there") == files_of(index)


def test_an_answer_that_is_lost_after_the_swap_is_no_conflict(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    grown = copy(2, "grown")
    place.faults.plan("PUT", "CURRENT", "lost", "500", "lost")
    push(place.store(), grown)
    assert place.faults.met == 3
    assert require_root(place.store())[0].live == "000002"
    assert push(place.store(), grown).moved_files == 0


def test_a_lost_answer_of_one_writer_does_not_make_the_other_win_too(place: Place, copy: Copy) -> None:
    first = copy(1)
    push(place.store(), first)
    one, other = copy(2, "one"), copy(3, "other")
    for folder in (one, other):
        (folder / "REMOTE").write_bytes((first / "REMOTE").read_bytes())
    place.faults.plan("PUT", "CURRENT", "lost")
    push(place.store(), one)
    with pytest.raises(IndexConflictError):
        push(place.store(), other)
    assert require_root(place.store())[0].live == "000002"


def test_a_store_that_goes_on_failing_is_one_line_and_changes_nothing(place: Place, copy: Copy) -> None:
    push(place.store(), copy(1))
    grown = copy(2, "grown")
    place.faults.plan("PUT", "files/", *["500"] * 100)
    with pytest.raises(StoreError, match=r"the store failed 4 times: .*; run the same command again") as failure:
        push(place.store(), grown)
    assert "\n" not in str(failure.value)
    assert "secret" not in str(failure.value)
    assert require_root(place.store())[0].live == "000001"


def test_an_interrupted_pull_goes_on_where_it_stopped(place: Place, copy: Copy, tmp_path: Path) -> None:
    index, there = copy(1), tmp_path / "there"
    push(place.store(), index)
    store, fetched = place.store(), 0
    get_range = store.get_range

    def dies(path: str, start: int, length: int) -> bytes:
        nonlocal fetched
        fetched += 1
        if fetched == 4:
            raise KeyboardInterrupt
        return get_range(path, start, length)

    store.get_range = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pull(store, there)
    assert not (there / "CURRENT").exists()
    again = pull(place.store(), there)
    assert 1 <= again.moved_files < len(files_of(index)) - 1  # beside the manifest
    assert (current_name(there), valid(there)) == ("000001", True)


def test_who_may_only_read_pulls_without_a_lease(
    place: Place, copy: Copy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push(place.store(), copy(1))
    place.faults.plan("PUT", "leases/", *["500"] * 4)
    pull(place.store(), tmp_path / "there")
    assert place.faults.met == 4
    assert "no lease, so that a gc meanwhile would interrupt this pull" in caplog.text
    assert valid(tmp_path / "there")
