"""Caches in fresh folders, and records whose payloads tell their keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kalm_cache.storage.record import Record
from kalm_cache.storage.text_cache.text_cache import Namespace, TextCache, TextCacheOptions

MIB = 1 << 20
OpenCache = Callable[..., TextCache]


def record_of(name: str, nbytes: int = 1000) -> Record:
    """A record that only `name` can have: a payload drawn from it."""
    return Record(3, 4, 64, 100, False, random.Random(name).randbytes(nbytes))


def put(cache: TextCache, namespace: Namespace, *names: str, nbytes: int = 1000) -> None:
    """Write records under their names, and wait until they are."""
    for name in names:
        cache.put(namespace.key(b"t", name.encode()), nbytes, lambda name=name: record_of(name, nbytes))  # type: ignore[misc]
    cache.flush()


def found(cache: TextCache, namespace: Namespace, *names: str) -> list[str]:
    """The names whose records are there, each checked to be the one that was written."""
    records = cache.find([namespace.key(b"t", name.encode()) for name in names])
    for name, record in zip(names, records, strict=True):
        assert record is None or record == record_of(name, len(record.payload))
    return [name for name, record in zip(names, records, strict=True) if record is not None]


@pytest.fixture
def open_cache(tmp_path: Path, request: pytest.FixtureRequest) -> OpenCache:
    """Opens the cache of a folder; it closes with the test."""

    def opened(folder: Path = tmp_path / "cache", max_bytes: int = 64 * MIB, clock=None, **options) -> TextCache:
        more = {} if clock is None else {"clock": clock}
        cache = TextCache(TextCacheOptions(folder, max_bytes, **options), **more)
        request.addfinalizer(cache.close)
        return cache

    return opened
