"""What an index is opened with, and everything that must be refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kalm_cache import PassageIndex
from kalm_cache.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    StoreError,
)
from kalm_cache.generations.generation import open_current
from kalm_cache.storage.locks import exclude
from tests.checkpoints import MINI, make_checkpoint
from tests.indexes import build, make_embedder, settings_for, shard_of


def test_the_same_weights_in_another_folder_are_the_same_model(
    folders: dict[str, Path], mini_folder: Path, tmp_path: Path
):
    moved = Path(shutil.copytree(mini_folder, tmp_path / "moved"))
    with PassageIndex.open(folders["fp16"], model=str(moved), device="cpu") as index:
        assert len(index) == 12


def test_another_model_is_refused_with_both_sides_named(folders: dict[str, Path], mini_folder: Path, tmp_path: Path):
    other = make_checkpoint(tmp_path / "other", MINI, seed=1)
    with pytest.raises(IndexMismatchError) as raised:
        PassageIndex.open(folders["fp16"], model=str(other), device="cpu")
    message = str(raised.value)
    assert str(mini_folder) in message
    assert str(other) in message
    assert f"kalm-cache reindex CORPUS --index {folders['fp16']} --model {other}" in message


def test_another_codec_is_refused_with_both_sides_named(folders: dict[str, Path]):
    with pytest.raises(IndexMismatchError, match=r"built with codec int8, fp16 was asked for; leave --codec out"):
        PassageIndex.open(folders["int8"], codec="fp16")
    PassageIndex.open(folders["int8"], codec="int8", device="cpu").close()


def test_another_state_of_the_embedder_is_refused(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    own = Path(shutil.copytree(embedder_folder, tmp_path / "embedder"))
    build(tmp_path / "index", settings_for(mini_folder, own), {"d1": "text"})
    shutil.rmtree(own)
    make_embedder(own, dimension=4)
    with pytest.raises(IndexMismatchError, match="another state of embedder"):
        PassageIndex.open(tmp_path / "index", device="cpu")


def test_a_folder_without_an_index_is_not_found(tmp_path: Path):
    with pytest.raises(IndexNotFoundError):
        PassageIndex.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["states.lmdb", "passages.lmdb", "store.json", "first_stage/dense.faiss", "first_stage/bm25/numbers.npy"]
)
def test_a_cut_or_missing_file_is_refused_before_it_is_mapped(copied: Path, name: str):
    path = shard_of(copied) / name
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(StoreError, match=r"its receipt says \d+; run kalm-cache verify"):
        PassageIndex.open(copied, device="cpu")
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        PassageIndex.open(copied, device="cpu")


def test_codecs_are_compared_by_what_they_are_and_not_by_their_spelling(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec="int4+zstd"), {"d1": "text"})
    PassageIndex.open(tmp_path / "index", codec="int4+zstd3", device="cpu").close()
    with pytest.raises(IndexMismatchError, match=r"codec int4\+zstd3, int4\+zstd9 was asked for"):
        PassageIndex.open(tmp_path / "index", codec="int4+zstd9", device="cpu")


def test_an_open_index_is_safe_from_gc_until_it_is_closed(copied: Path):
    manifest = open_current(copied).folder / "manifest.json"
    index = PassageIndex.open(copied, device="cpu")
    with exclude(manifest) as is_free:
        assert not is_free
    index.close()
    index.close()
    with exclude(manifest) as is_free:
        assert is_free


def test_an_index_that_cannot_be_opened_holds_no_lock(copied: Path):
    (shard_of(copied) / "states.lmdb").unlink()
    with pytest.raises(StoreError):
        PassageIndex.open(copied, device="cpu")
    with exclude(open_current(copied).folder / "manifest.json") as is_free:
        assert is_free
