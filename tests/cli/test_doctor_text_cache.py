"""`kalm-cache doctor` on the folder of a text cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache.doctor.check import Report
from kalm_cache.doctor.text_cache import check_text_cache
from kalm_cache.errors import StoreError
from kalm_cache.process import system
from kalm_cache.settings import load_settings
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.storage.text_cache.conftest import MIB, put
from tests.storage.text_cache.test_upkeep import data_of


def test_without_a_text_cache_there_is_nothing_to_check() -> None:
    assert check_text_cache(load_settings()) == Report("none")


def test_what_is_set_for_no_cache_is_a_warning() -> None:
    report = check_text_cache(load_settings(text_cache_secret="ours", text_cache_gib=2.0))
    assert report.status == "warn"
    assert "text_cache_secret has no effect" in report.advice
    assert "text_cache_gib has no effect" in report.advice
    assert check_text_cache(load_settings(text_cache_gib=4.0)).status == "ok"  # as configs/base.toml says


def test_a_file_that_does_not_open_or_is_too_large_is_a_warning(tmp_path: Path) -> None:
    with TextCache(TextCacheOptions(tmp_path, 64 * MIB)) as cache:
        for start in range(0, 600, 20):
            put(cache, cache.namespace({}), *(f"n{i}" for i in range(start, start + 20)), nbytes=30_000)
    assert check_text_cache(load_settings(text_cache=str(tmp_path), text_cache_gib=0.1)).status == "ok"
    smaller = check_text_cache(load_settings(text_cache=str(tmp_path), text_cache_gib=1 / 64))
    assert (smaller.status, "cache trim --gib 0.015625" in smaller.advice) == ("warn", True)
    data_of(tmp_path).write_bytes(b"no database" * 1000)
    damaged = check_text_cache(load_settings(text_cache=str(tmp_path), text_cache_gib=0.1))
    assert (damaged.status, "cache clear --text-cache" in damaged.advice) == ("warn", True)


def test_a_folder_that_is_not_there_yet_and_can_be_made_is_well(tmp_path: Path) -> None:
    report = check_text_cache(load_settings(text_cache=str(tmp_path / "new" / "cache"), text_cache_gib=0.1))
    assert report.status == "ok"
    assert "0.00 of 0.1 GiB" in report.found
    assert not (tmp_path / "new").exists()


def test_more_than_the_disk_has_is_a_warning_with_what_fits(tmp_path: Path) -> None:
    report = check_text_cache(load_settings(text_cache=str(tmp_path), text_cache_gib=1e9))
    assert report.status == "warn"
    assert "set text_cache_gib to" in report.advice


def test_a_file_in_the_place_of_the_folder_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    report = check_text_cache(load_settings(text_cache=str(tmp_path / "file"), text_cache_gib=0.1))
    assert "cannot be written" in report.advice


def test_a_network_file_system_fails_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(system, "MOUNTS", mounts)
    with pytest.raises(StoreError, match="network file system"):
        check_text_cache(load_settings(text_cache=str(tmp_path)))
    allowed = load_settings(text_cache=str(tmp_path), text_cache_any_file_system=True, text_cache_gib=0.1)
    report = check_text_cache(allowed)
    assert report.status == "ok"
