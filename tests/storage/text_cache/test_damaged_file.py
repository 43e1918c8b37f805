"""A file that does not open, or was cut short, costs what it holds, and no answer; `clear` mends it, whatever it is."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kalm_cache.errors import StoreError
from kalm_cache.storage.text_cache import upkeep
from tests.storage.text_cache.conftest import MIB, OpenCache, found, put
from tests.storage.text_cache.test_upkeep import data_of

MODEL = {"model": "a" * 64}
NAMES = [f"n{i}" for i in range(60)]
PAGE = 4096
RUINED: dict[str, Callable[[bytes], bytes]] = {
    "one header": lambda data: bytes(PAGE) + data[PAGE:],
    "both headers": lambda data: bytes(2 * PAGE) + data[2 * PAGE :],
    "another file": lambda data: b"this is no database\n" * 1000,
    "headers alone": lambda data: data[: 2 * PAGE],
}


@pytest.fixture
def folder(open_cache: OpenCache, tmp_path: Path) -> Path:
    """A cache of 6 MB, and somebody's notes beside its file."""
    cache = open_cache()
    for start in range(0, len(NAMES), 20):
        put(cache, cache.namespace(MODEL), *NAMES[start : start + 20], nbytes=100_000)
    cache.close()
    (data_of(tmp_path / "cache").parent / "notes.txt").write_text("mine")
    return tmp_path / "cache"


@pytest.mark.parametrize("ruin", RUINED.values(), ids=RUINED)
def test_a_damaged_file_says_what_mends_it_and_clear_does(
    open_cache: OpenCache, folder: Path, ruin: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    data_of(folder).write_bytes(ruin(data_of(folder).read_bytes()))
    mend = f"{folder}: the text cache is damaged .*; empty it: kalm-cache cache clear --text-cache {folder}, then"
    for look in (upkeep.stats, upkeep.verify, lambda folder: upkeep.trim(folder, MIB)):
        with pytest.raises(StoreError, match=mend):
            look(folder)
    with caplog.at_level(logging.WARNING):
        cache = open_cache()
        assert found(cache, cache.namespace(MODEL), *NAMES) == []
        put(cache, cache.namespace(MODEL), "new")
    assert "cache clear" in cache.counts.off
    assert len(caplog.records) == 1

    assert upkeep.clear(folder).removed is None
    assert [path.read_text() for path in folder.rglob("notes.txt")] == ["mine"]
    after = open_cache()
    put(after, after.namespace(MODEL), "new")
    assert found(after, after.namespace(MODEL), "new", *NAMES) == ["new"]
    assert upkeep.verify(folder) == upkeep.Verified(1, [])


USE = """
import sys
from pathlib import Path
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions
from tests.storage.text_cache.conftest import found, put
for folder in map(Path, sys.argv[1:]):
    with TextCache(TextCacheOptions(folder, 64 << 20)) as cache:
        namespace = cache.namespace({"model": "a" * 64})
        there = found(cache, namespace, *[f"n{i}" for i in range(60)])
        put(cache, namespace, *[f"more{i}" for i in range(20)], nbytes=100_000)
        print(len(there), "damaged" in cache.counts.off)
"""


def test_a_file_that_was_cut_short_ends_no_process(folder: Path, tmp_path: Path) -> None:
    data = data_of(folder).read_bytes()
    folders = []
    for i, size in enumerate((len(data) - PAGE, len(data) - 40 * PAGE, len(data) // 3)):
        folders.append(tmp_path / f"cut-{i}")
        (folders[-1] / "000001").mkdir(parents=True)
        (folders[-1] / "000001" / "data.mdb").write_bytes(data[:size])
    used = subprocess.run([sys.executable, "-c", USE, *map(str, folders)], capture_output=True, text=True)
    assert used.returncode == 0, used.stderr  # LMDB reads a map: beyond the file's end that is a SIGBUS
    answers = used.stdout.splitlines()
    assert len(answers) == 3
    assert answers[-1] == "0 True"


def test_a_folder_of_somebody_that_is_named_by_a_number_is_left_alone(open_cache: OpenCache, tmp_path: Path) -> None:
    photos = tmp_path / "cache" / "202401"
    photos.mkdir(parents=True)
    (photos / "bee.jpg").write_bytes(b"a bee")
    (tmp_path / "cache" / "000001").mkdir()
    (tmp_path / "cache" / "000001" / "wasp.jpg").write_bytes(b"a wasp")
    cache = open_cache()
    put(cache, cache.namespace(MODEL), "a")
    assert upkeep.clear(tmp_path / "cache").removed == 1
    put(cache, cache.namespace(MODEL), "b")
    cache.close()
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == ["bee.jpg", "wasp.jpg"]
    assert [path.name for path in photos.iterdir()] == ["bee.jpg"]
    assert [path.name for path in (tmp_path / "cache" / "000001").iterdir()] == ["wasp.jpg"]


def test_a_folder_that_is_not_there_is_not_made_by_who_looks_after_it(tmp_path: Path) -> None:
    for look in (upkeep.clear, lambda folder: upkeep.trim(folder, MIB)):
        with pytest.raises(StoreError, match="no text cache"):
            look(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_limit_is_that_of_who_wrote_last_and_is_kept_when_the_file_is_trimmed(
    open_cache: OpenCache, folder: Path
) -> None:
    assert upkeep.stats(folder).max_bytes == 64 * MIB
    assert upkeep.stats(folder).file_bytes < 16 * MIB
    for size in (32, 128):
        cache = open_cache(max_bytes=size * MIB)
        found(cache, cache.namespace(MODEL), "n1")
        put(cache, cache.namespace(MODEL), f"{size}")
        cache.close()
        assert upkeep.stats(folder).max_bytes == size * MIB
    upkeep.trim(folder, MIB)
    assert upkeep.stats(folder).max_bytes == 128 * MIB
    upkeep.clear(folder)
    assert upkeep.stats(folder).max_bytes is None


def test_a_file_that_is_larger_than_the_new_limit_is_said_with_what_makes_it_smaller(
    open_cache: OpenCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = open_cache(max_bytes=64 * MIB)
    for start in range(0, 240, 20):
        put(large, large.namespace(MODEL), *[f"n{i}" for i in range(start, start + 20)], nbytes=100_000)
    large.close()
    with caplog.at_level(logging.WARNING):
        found(small := open_cache(max_bytes=16 * MIB), small.namespace(MODEL), "n1")
    small.close()
    [said] = [record.getMessage() for record in caplog.records]
    assert f"kalm-cache cache trim --gib 0.0156 --text-cache {tmp_path / 'cache'}" in said
    upkeep.trim(tmp_path / "cache", 16 * MIB)
    assert upkeep.stats(tmp_path / "cache").file_bytes <= 16 * MIB
