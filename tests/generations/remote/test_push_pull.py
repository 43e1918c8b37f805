"""A pushed index, pulled elsewhere, is the same index; only what is missing moves. On every kind of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("obstore")

from kalm_cache.errors import IndexConflictError, IndexNotFoundError, StoreError
from kalm_cache.generations.current import current_name
from kalm_cache.generations.generation import open_current, open_generation, published_names
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.generations.publish import make_live
from kalm_cache.generations.remote import transfer
from kalm_cache.generations.remote.pull import pull, pull_into
from kalm_cache.generations.remote.push import push
from kalm_cache.generations.remote.root import FILES, require_root
from tests.indexer.changes import valid
from tests.object_store.places import Place

Copy = Callable[..., Path]


def files_of(index: Path) -> dict[str, bytes]:
    """Every file of the live generation, by its path."""
    folder = open_current(index).folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pushed_index_is_pulled_byte_for_byte(place: Place, copy: Copy, tmp_path: Path) -> None:
    index = copy(1)
    pushed = push(place.store(), index)
    pulled = pull(place.store(), tmp_path / "there")
    assert files_of(tmp_path / "there") == files_of(index)
    assert valid(tmp_path / "there")
    assert (pulled.moved_bytes, pulled.passages) == (pushed.bytes, 12)
    # equal files are one object; the manifest is moved beside the files that it names
    assert pushed.moved_bytes <= pushed.bytes + (open_current(index).folder / MANIFEST).stat().st_size


def test_what_is_at_hand_or_there_does_not_move_again(place: Place, copy: Copy, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push(place.store(), copy(1))
    pull(place.store(), there)
    assert (push(place.store(), tmp_path / "index").moved_bytes, pull(place.store(), there).moved_bytes) == (0, 0)
    before = {receipt.sha256 for receipt in open_current(there).manifest.files.values()}
    pushed = push(place.store(), copy(2, "grown"))
    pulled = pull(place.store(), there)
    manifest = open_current(tmp_path / "grown").manifest
    new = {receipt.sha256: receipt.bytes for receipt in manifest.files.values() if receipt.sha256 not in before}
    assert pulled.moved_bytes == sum(new.values()) < pulled.bytes / 2
    assert pushed.moved_files == len(new) + 1  # and its manifest
    assert files_of(there) == files_of(tmp_path / "grown")


def test_a_place_where_nothing_was_published_says_so(place: Place, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="no published index here; run: kalm-cache index"):
        pull(place.store(), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_of_two_writers_one_wins_and_the_other_is_told(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    for name in ("a", "b"):
        pull_into(place.store(), tmp_path / name)
    one, other = copy(2, "one"), copy(3, "other")
    for folder, name in ((one, "a"), (other, "b")):
        (folder / "REMOTE").write_bytes((tmp_path / name / "REMOTE").read_bytes())  # each made its own of the same base
    push(place.store(), one)
    with pytest.raises(IndexConflictError, match="another writer made generation 000002 live"):
        push(place.store(), other)
    root, _ = require_root(place.store())
    assert (root.live, sorted(root.generations)) == ("000002", ["000001", "000002"])


def test_two_first_publications_at_once_leave_one(place: Place, copy: Copy) -> None:
    one, other = copy(1, "one"), copy(2, "other")
    store = place.store()
    swap = store.swap

    def late(path: str, content: bytes, expected: object) -> bool:
        store.swap = swap  # type: ignore[method-assign]
        push(place.store(), other)  # between the look at the store and the swap
        return swap(path, content, None)

    store.swap = late  # type: ignore[assignment, method-assign]
    with pytest.raises(IndexConflictError, match="nothing of this one was published"):
        push(store, one)
    assert require_root(place.store())[0].live == "000002"


def test_the_earlier_generations_come_without_their_segments(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(3))
    there = tmp_path / "there"
    pull_into(place.store(), there)
    assert published_names(there) == ["000001", "000002", "000003"]
    assert [path.name for path in sorted((there / "generations" / "000001").rglob("*"))] == ["build.json", MANIFEST]
    assert valid(there)
    assert push(place.store(), there).moved_files == 0


def test_a_folder_with_changes_of_its_own_is_not_overwritten(place: Place, copy: Copy) -> None:
    push(place.store(), copy(1))
    other = copy(2, "other")
    with pytest.raises(StoreError, match="push it first, or pull into another folder"):
        pull_into(place.store(), other)
    assert current_name(other) == "000002"


def test_a_damaged_object_is_refused_on_arrival_and_changes_nothing(place: Place, copy: Copy, tmp_path: Path) -> None:
    there = tmp_path / "there"
    push(place.store(), copy(1))
    pull(place.store(), there)
    push(place.store(), copy(2, "grown"))
    before = {receipt.sha256 for receipt in open_current(there).manifest.files.values()}
    new = next(one for one in open_current(tmp_path / "grown").manifest.files.values() if one.sha256 not in before)
    place.store().put(f"{FILES}/{new.sha256}", b"x" * new.bytes)
    with pytest.raises(StoreError, match="arrived damaged 3 times"):
        pull(place.store(), there)
    assert (current_name(there), published_names(there), valid(there)) == ("000001", ["000001"], True)


def test_large_files_move_in_parts(place: Place, copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", 1000)
    index = copy(1)
    push(place.store(), index)
    place.faults.plan("GET", "files/", "500", "truncated", "lost")
    pulled = pull(place.store(), tmp_path / "there")
    assert files_of(tmp_path / "there") == files_of(index)
    assert (pulled.moved_bytes, place.faults.met) == (pulled.bytes, 3)


def test_a_root_that_names_another_generations_manifest_is_refused(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    root, found = require_root(place.store())
    other = root.changed(live="000005", generations={"000005": root.live_manifest})
    assert place.store().swap("CURRENT", other.to_bytes(), found)
    with pytest.raises(StoreError, match="the manifest of generation 000005 is that of generation 000001"):
        pull(place.store(), tmp_path / "there")
    assert not (tmp_path / "there" / "CURRENT").exists()


def test_a_damaged_root_is_refused(place: Place, copy: Copy, tmp_path: Path) -> None:
    push(place.store(), copy(1))
    found = place.store().get("CURRENT")
    assert found is not None
    place.store().put("CURRENT", found.content.replace(b"000001", b"000002", 1))
    with pytest.raises(StoreError, match=r"/CURRENT: is no CURRENT of an index: checksum mismatch"):
        pull(place.store(), tmp_path / "there")


def test_a_damaged_file_is_not_pushed(place: Place, copy: Copy) -> None:
    index = copy(1)
    states = open_current(index).segment / "states.lmdb"
    content = bytearray(states.read_bytes())
    content[-1] ^= 1
    states.write_bytes(content)
    with pytest.raises(StoreError, match=r"states\.lmdb: its SHA-256 is not that of its receipt"):
        push(place.store(), index)
    assert place.store().get("CURRENT") is None


def test_a_rollback_of_a_folder_is_pushed_like_a_change(place: Place, copy: Copy, tmp_path: Path) -> None:
    index = copy(2)
    push(place.store(), index)
    make_live(index, open_generation(index / "generations" / "000001"))
    assert push(place.store(), index).moved_files == 0
    pull(place.store(), tmp_path / "there")
    assert current_name(tmp_path / "there") == "000001"
