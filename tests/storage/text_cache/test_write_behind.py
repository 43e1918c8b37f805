"""The writing thread beside answers: it gives way, unless somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event

import pytest

from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache import write_behind
from kalm_cache.storage.text_cache.cached_blocks import Put
from kalm_cache.storage.text_cache.write_behind import Pending, WriteBehind


def test_the_writer_pauses_between_records_until_somebody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "GIVE_WAY", 1e9)  # a pause that nobody lives to see the end of
    made: list[bytes] = []
    first_is_made = Event()

    def maker(key: bytes) -> Callable[[], Record]:
        def make() -> Record:
            made.append(key)
            first_is_made.set()
            return Record(1, 4, 8, 3, False, b"states")

        return make

    written: list[bytes] = []

    def write(puts: Sequence[Put]) -> int:
        written.extend(put.key for put in puts)
        return 0

    writer = WriteBehind(write, queue_bytes=100, batch_bytes=20, on_off=pytest.fail, gives_way=True)
    for key in (b"a", b"b"):
        writer.add(Pending(key, 10, maker(key), written=0))

    assert first_is_made.wait(60)
    assert made == [b"a"] and not written
    assert writer.flush(60)
    assert made == written == [b"a", b"b"]
    writer.close()


def test_the_writer_pauses_between_batches_until_somebody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paused = Event()
    written: list[bytes] = []

    def write(puts: Sequence[Put]) -> int:
        monkeypatch.setattr(write_behind, "GIVE_WAY", 1e9)  # from here on, no pause ends by itself
        written.extend(put.key for put in puts)
        paused.set()
        return 0

    writer = WriteBehind(write, queue_bytes=100, batch_bytes=10, on_off=pytest.fail, gives_way=True)
    for key in (b"a", b"b"):
        writer.add(Pending(key, 10, lambda: Record(1, 4, 8, 3, False, b"states"), written=0))
    assert paused.wait(60)
    assert written == [b"a"]
    assert writer.flush(60)
    assert written == [b"a", b"b"]
    writer.close()
