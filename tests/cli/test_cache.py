"""`kalm-cache cache` says what a text cache holds, checks it, and makes it smaller."""

from __future__ import annotations

import json
from pathlib import Path

from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.cli.conftest import Run
from tests.storage.text_cache.conftest import MIB, put
from tests.storage.text_cache.test_upkeep import damage

NAMES = [f"n{i}" for i in range(200)]


def filled(folder: Path) -> Path:
    with TextCache(TextCacheOptions(folder, 64 * MIB)) as cache:
        for start in range(0, 200, 20):
            put(cache, cache.namespace({"model": "m"}), *NAMES[start : start + 20], nbytes=30_000)
    return folder


def test_a_cache_is_looked_at_checked_trimmed_and_cleared(run: Run, tmp_path: Path) -> None:
    folder = str(filled(tmp_path / "cache"))
    stats = json.loads(run("cache", "stats", "--text-cache", folder, "--json").stdout)
    assert (stats["entries"], stats["namespaces"]) == (200, [{"model": "m"}])
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


def test_a_folder_without_a_cache_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    done = run("cache", "stats", "--text-cache", tmp_path)
    assert (done.exit_code, "no text cache" in done.stderr) == (1, True)
