"""An object as a file: as a file on disk reads, whatever a store does meanwhile. On every kind of store."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("obstore")

from kalm_cache.errors import StoreError
from kalm_cache.object_store.object_file import BUFFER_BYTES, ObjectFile, open_object
from kalm_cache.object_store.store import ObjectStore
from tests.object_store.faults import KINDS
from tests.object_store.places import Place

CONTENT = bytes(range(256)) * 40


def opened(store: ObjectStore, content: bytes = CONTENT) -> ObjectFile:
    store.put("object", content)
    return ObjectFile(store, "object", store.info("object"))


def test_it_reads_and_seeks_as_a_file(place: Place) -> None:
    file, same = opened(place.store()), io.BytesIO(CONTENT)
    for offset, whence, count in (
        (0, io.SEEK_SET, 10),
        (5, io.SEEK_CUR, 3),
        (-7, io.SEEK_END, 100),
        (20_000, io.SEEK_SET, 5),
        (0, io.SEEK_SET, -1),
    ):
        assert file.seek(offset, whence) == same.seek(offset, whence)
        assert file.read(count) == same.read(count)
        assert file.tell() == same.tell()


def test_an_empty_object_is_an_empty_file(place: Place) -> None:
    assert opened(place.store(), b"").read() == b""


def test_a_list_and_a_look_say_the_same_of_an_object(place: Place) -> None:
    store = place.store()
    store.put("folder/object", CONTENT)
    info = store.info("folder/object")
    assert store.list("folder") == {"folder/object": info}
    assert info.bytes == len(CONTENT)
    assert info.tag
    with pytest.raises(FileNotFoundError):
        store.info("folder")


@pytest.mark.parametrize("kind", KINDS)
def test_any_fault_is_borne_twice(place: Place, kind: str) -> None:
    opened(place.store())
    listed = place.store().info("object")
    place.faults.plan("GET", "object", kind, kind)
    assert ObjectFile(place.store(), "object", listed).read() == CONTENT
    assert place.faults.met == 2


def test_another_version_and_a_removed_object_are_errors(place: Place) -> None:
    store = place.store()
    file = opened(store)
    assert file.read(5) == CONTENT[:5]
    store.put("object", CONTENT[::-1])
    with pytest.raises(StoreError, match=rf"^{place.url}/object: was replaced or removed while it was read; run"):
        file.read(5)
    store.delete(["object"])
    with pytest.raises(StoreError, match="was replaced or removed"):
        file.read(5)


def test_no_more_than_a_buffer_is_fetched_before_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = place.store()
    store.put("object", b"a line\n" * (BUFFER_BYTES // 3))
    fetched: list[int] = []
    get_range = store.get_range

    def counted(path: str, start: int, length: int, tag: str | None = None) -> bytes:
        fetched.append(length)
        return get_range(path, start, length, tag)

    monkeypatch.setattr(store, "get_range", counted)
    with open_object(store, "object", store.info("object")) as file:
        assert file.readline() == b"a line\n"
        assert fetched == [BUFFER_BYTES]
        assert sum(1 for _ in file) == BUFFER_BYTES // 3 - 1
    assert len(fetched) == 3
