"""`kalm-cache cache` says what a text cache holds, checks it, and makes it smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.cli.conftest import Run
from tests.storage.text_cache.conftest import MIB, put
from tests.storage.text_cache.test_upkeep import damage, data_of

NAMES = [f"n{i}" for i in range(200)]


def filled(folder: Path) -> Path:
    with TextCache(TextCacheOptions(folder, 64 * MIB)) as cache:
        for start in range(0, 200, 20):
            put(cache, cache.namespace({"model": "m"}), *NAMES[start : start + 20], nbytes=30_000)
    return folder


def test_a_cache_is_looked_at_checked_trimmed_and_cleared(run: Run, tmp_path: Path) -> None:
    folder = str(filled(tmp_path / "cache"))
    stats = json.loads(run("cache", "stats", "--text-cache", folder, "--json").stdout)
    assert (stats["entries"], stats["namespaces"], stats["max_bytes"]) == (200, [{"model": "m"}], 64 * MIB)
    assert "and may have 64.0 MiB" in run("cache", "stats", "--text-cache", folder).stdout
    assert "200 records, 0 problems" in run("cache", "verify", "--text-cache", folder).stdout
    trimmed = json.loads(run("cache", "trim", "--gib", "0.003", "--text-cache", folder, "--json").stdout)
    assert trimmed["bytes_after"] < 4 * MIB < trimmed["bytes_before"]
    assert 0 < trimmed["removed"] < 200
    run("cache", "clear", "--text-cache", folder)
    assert "0 passages in 0 blocks" in run("cache", "stats", "--text-cache", folder).stdout


def test_damage_is_named_and_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    folder = filled(tmp_path / "cache")
    damage(folder, "n7", 30_000)
    done = run("cache", "verify", "--text-cache", folder)
    assert done.exit_code == 1
    assert "checksum mismatch" in done.stdout
    assert "200 records, 1 problems" in done.stdout


def test_a_file_that_does_not_open_is_cleared(run: Run, tmp_path: Path) -> None:
    folder = filled(tmp_path / "cache")
    data_of(folder).write_bytes(b"no database" * 1000)
    for command in (["stats"], ["verify"], ["trim", "--gib", "0.1"]):
        done = run("cache", *command, "--text-cache", folder)
        assert (done.exit_code, f"kalm-cache cache clear --text-cache {folder}" in done.stderr) == (1, True)
    assert "all passages removed; the file had 10.7 KiB" in run("cache", "clear", "--text-cache", folder).stdout
    assert "0 passages in 0 blocks" in run("cache", "stats", "--text-cache", folder).stdout


@pytest.mark.parametrize("command", ["cache stats", "cache clear", "warm -", "serve", "serve --index x"])
def test_an_empty_name_is_refused(run: Run, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    filled(tmp_path)  # that would be the folder with an empty name
    done = run(*command.split(), "--text-cache", "")
    assert (done.exit_code, "--text-cache is empty: name a folder, or leave the flag out" in done.stderr) == (2, True)
    assert json.loads(run("cache", "stats", "--text-cache", ".", "--json").stdout)["entries"] == 200


def test_an_empty_variable_is_as_good_as_none(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KALM_CACHE_TEXT_CACHE", "")
    done = run("serve")
    assert (done.exit_code, "nothing to serve" in done.stderr) == (2, True)


def test_a_size_without_a_cache_is_said_to_have_no_effect(run: Run, tmp_path: Path) -> None:
    done = run("serve", "--index", tmp_path / "none", "--port", "0", "--text-cache-gib", "1")
    assert done.exit_code == 1  # there is no index either
    assert "text_cache_gib has no effect: there is no text cache" in done.stderr
    assert "has no effect" not in run("serve", "--index", tmp_path / "none", "--port", "0").stderr


def test_a_folder_without_a_cache_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    done = run("cache", "stats", "--text-cache", tmp_path)
    assert (done.exit_code, "no text cache" in done.stderr) == (1, True)
