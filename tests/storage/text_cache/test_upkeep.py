"""A cache can be looked at, checked, trimmed and cleared while others use it; damage costs one record."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.errors import StoreError
from kalm_cache.storage.text_cache import upkeep
from tests.storage.text_cache.conftest import MIB, OpenCache, found, put, record_of

MODEL = {"model": "a" * 64}
NAMES = [f"n{i}" for i in range(300)]


def data_of(folder: Path) -> Path:
    [data] = folder.rglob("data.mdb")
    return data


def damage(folder: Path, name: str, nbytes: int) -> None:
    """Flip a bit of a record's payload."""
    data = bytearray(data_of(folder).read_bytes())
    at = data.index(bytes(record_of(name, nbytes).payload)[:64])
    data[at + 10] ^= 4
    data_of(folder).write_bytes(data)


def test_a_damaged_record_is_a_miss_is_counted_and_is_overwritten(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache()
    put(cache, cache.namespace(MODEL), "a", "b")
    cache.close()
    damage(tmp_path / "cache", "a", 1000)
    [problem] = upkeep.verify(tmp_path / "cache").problems
    assert "checksum mismatch" in problem
    again = open_cache()
    namespace = again.namespace(MODEL)
    assert found(again, namespace, "a", "b") == ["b"]
    assert again.counts.damaged == 1
    put(again, namespace, "a")
    assert found(again, namespace, "a", "b") == ["a", "b"]


def test_a_sound_cache_has_no_problems_and_says_what_it_holds(open_cache: OpenCache, tmp_path: Path) -> None:
    cache = open_cache()
    put(cache, cache.namespace(MODEL), *NAMES)
    cache.close()
    assert upkeep.verify(tmp_path / "cache") == upkeep.Verified(300, [])
    stats = upkeep.stats(tmp_path / "cache")
    assert (stats.entries, stats.namespaces) == (300, [MODEL])
    assert stats.used_bytes <= stats.file_bytes == data_of(tmp_path / "cache").stat().st_size


def test_trimming_keeps_the_newest_and_an_open_cache_goes_on_with_the_new_file(
    open_cache: OpenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kalm_cache.storage.text_cache.text_cache.LOOK_SECONDS", 0.0)
    cache = open_cache()
    namespace = cache.namespace(MODEL)
    for start in range(0, 300, 20):
        put(cache, namespace, *NAMES[start : start + 20], nbytes=30_000)
    trimmed = upkeep.trim(tmp_path / "cache", 4 * MIB)
    assert trimmed.bytes_before > 8 * MIB
    assert trimmed.bytes_after <= 4 * MIB + MIB // 4
    kept = found(cache, namespace, *NAMES)
    assert kept[-100:] == NAMES[-100:]
    assert len(kept) == 300 - trimmed.removed > 100
    put(cache, namespace, "new")
    assert found(cache, namespace, "new", NAMES[-1]) == ["new", NAMES[-1]]


def test_clearing_removes_all_and_leaves_unknown_files_alone(
    open_cache: OpenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kalm_cache.storage.text_cache.text_cache.LOOK_SECONDS", 0.0)
    cache = open_cache()
    put(cache, cache.namespace(MODEL), *NAMES)
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    (tmp_path / "cache" / "older").mkdir()
    assert upkeep.trim(tmp_path / "cache", 0).removed == 300
    assert found(cache, cache.namespace(MODEL), *NAMES) == []
    assert (tmp_path / "cache" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "cache" / "older").is_dir()
    assert upkeep.stats(tmp_path / "cache").entries == 0


def test_a_folder_without_a_cache_is_said_to_have_none(tmp_path: Path) -> None:
    for look in (upkeep.stats, upkeep.verify, lambda folder: upkeep.trim(folder, 0)):
        with pytest.raises(StoreError, match="no text cache"):
            look(tmp_path)
