"""`kalm-cache doctor` on the folder of a text cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm_cache import system
from kalm_cache.doctor.check import Report
from kalm_cache.doctor.text_cache import check_text_cache
from kalm_cache.errors import StoreError
from kalm_cache.settings import load_settings


def test_without_a_text_cache_there_is_nothing_to_check() -> None:
    assert check_text_cache(load_settings()) == Report("none")


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
