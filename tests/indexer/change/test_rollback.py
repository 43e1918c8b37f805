"""Going back to an earlier generation, and on from there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from indexer.change.add_delete import delete_passages
from indexer.change.gc import collect_garbage
from indexer.change.rollback import roll_back
from kalm_cache import PassageIndex
from kalm_cache.errors import IndexNotFoundError, StoreError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings
from tests.indexer.changes import add, numbers_of, texts_of, valid
from tests.indexes import TEXTS, build


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """000001: all texts; 000002: one more; 000003: one less."""
    folder = tmp_path_factory.mktemp("three") / "index"
    build(folder, settings, TEXTS, encoders=encoders)
    add(folder, settings, encoders, {"n": "a new one"})
    delete_passages(["d1"], folder)
    return folder


@pytest.fixture
def index(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "index"))


def test_a_rollback_goes_to_the_parent_and_then_to_its_parent(index: Path):
    report = roll_back(index)
    assert (report.before, report.generation, report.passages) == ("000003", "000002", 13)
    assert texts_of(index) == TEXTS | {"n": "a new one"}
    assert roll_back(index).generation == "000001"
    assert texts_of(index) == TEXTS
    with pytest.raises(UsageError, match="000001 has no parent to go back to; published: 000001, 000002, 000003"):
        roll_back(index)
    assert valid(index)


@pytest.mark.parametrize("name", ["000001", "1", "3"])
def test_a_rollback_goes_to_a_generation_by_its_name(index: Path, name: str):
    assert roll_back(index, name).generation == f"{int(name):06d}"
    assert open_current(index).name == f"{int(name):06d}"


def test_a_generation_that_is_not_there_is_refused(index: Path):
    for name in ("000009", "../000001", ""):
        with pytest.raises(UsageError, match="there is no generation"):
            roll_back(index, name)
    assert open_current(index).name == "000003"


def test_a_damaged_generation_is_not_made_live(index: Path):
    (index / "generations/000002/shards/00000/states.lmdb").unlink()
    with pytest.raises(StoreError, match=r"states\.lmdb is missing"):
        roll_back(index)
    assert open_current(index).name == "000003"


@pytest.mark.parametrize("line", [b"", b"000002\n", b"000001 crc32:d74864ca\n", bytes(22)])
def test_a_damaged_current_stops_everything_and_a_rollback_by_name_repairs_it(
    index: Path, settings: Settings, encoders: Encoders, line: bytes
):
    (index / "CURRENT").write_bytes(line)
    for refused in (
        lambda: roll_back(index),
        lambda: delete_passages(["d2"], index),
        lambda: add(index, settings, encoders, {"m": "more"}),
        lambda: collect_garbage(index),
        lambda: PassageIndex.open(index),
    ):
        with pytest.raises(StoreError, match=r"CURRENT: checksum mismatch.* kalm-cache rollback --to 000003 "):
            refused()
    report = roll_back(index, "000003")
    assert (report.before, report.generation) == ("", "000003")
    assert valid(index)


def test_names_and_numbers_go_on_above_what_was_rolled_back(index: Path, settings: Settings, encoders: Encoders):
    roll_back(index, "1")
    report = add(index, settings, encoders, {"other": "another new one"})
    assert report.generation == "000004"
    assert numbers_of(index)["other"] == 13  # 12 was "n"
    assert texts_of(index) == TEXTS | {"other": "another new one"}
    assert valid(index)


def test_a_rollback_is_not_taken_for_a_publication_that_was_cut_short(
    index: Path, settings: Settings, encoders: Encoders
):
    roll_back(index)
    assert delete_passages(["d2"], index).generation == "000004"
    assert texts_of(index) == {one: text for one, text in TEXTS.items() if one != "d2"} | {"n": "a new one"}


def test_readers_go_on_with_what_they_have_open(index: Path):
    with PassageIndex.open(index, device="cpu") as serving:
        before = serving.margins("ferry", ["d0", "n"])
        roll_back(index, "1")
        assert serving.margins("ferry", ["d0", "n"]) == before


def test_where_nothing_was_published_there_is_nothing_to_go_back_to(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        roll_back(tmp_path / "none")
    assert not (tmp_path / "none").exists()
