"""Generations on disk: what a reader sees at every step of publishing, and who may build."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kalm_cache import durable, generation
from kalm_cache.errors import IndexLockedError, IndexMismatchError, IndexNotFoundError, StoreError
from kalm_cache.fingerprint import Fingerprint
from kalm_cache.generation import (
    Counts,
    FileReceipt,
    Generation,
    Manifest,
    build_lock,
    building_folder,
    open_current,
    open_generation,
    publish,
    receipts,
    require_whole,
    shard_folder,
)

FINGERPRINT = Fingerprint("m", "t", 1024, 4, "float32", "fp16", "e", True, True)


def build(index: Path, content: str = "data") -> tuple[Path, Manifest]:
    """A finished build of one file that is not published yet, and its manifest."""
    building = building_folder(index)
    shard_folder(building).mkdir(parents=True)
    (shard_folder(building) / "passages.lmdb").write_text(content)
    manifest = Manifest(
        generation=building.name.removesuffix(".building"),
        created_at="2026-01-01T00:00:00+00:00",
        model="tiny",
        embedder="static",
        embedder_query_prompt="",
        embedder_passage_prompt="",
        width=8,
        fingerprint=FINGERPRINT,
        counts=Counts(1, 2, 3, 0, 4),
        files=receipts(building),
        parent=None,
    )
    return building, manifest


def publish_next(index: Path, content: str = "data") -> Generation:
    return publish(index, *build(index, content))


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_published_generation_is_the_live_one_with_its_manifest(tmp_path: Path):
    published = publish_next(tmp_path)
    assert open_current(tmp_path) == published
    assert (tmp_path / "CURRENT").read_bytes() == b"000001\n"
    assert (published.shard / "passages.lmdb").read_text() == "data"
    assert published.manifest.files == {
        "shards/00000/passages.lmdb": FileReceipt(4, "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7")
    }


def test_readers_see_the_old_generation_until_publishing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish_next(tmp_path)
    seen = []

    def look(name: str):
        original = getattr(durable, name)

        def stepping(*arguments: Path) -> None:
            seen.append(open_current(tmp_path).manifest.generation)
            original(*arguments)
            seen.append(open_current(tmp_path).manifest.generation)

        return stepping

    for module in (durable, generation):
        for name in ("rename_durably", "sync"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, look(name))
    publish_next(tmp_path, "newer")
    assert set(seen) == {"000001", "000002"}
    assert seen == sorted(seen)  # never back
    assert seen.count("000002") <= 4  # the last rename, and the fsync within it


@pytest.mark.parametrize("step", range(1, 4))
def test_a_publication_that_dies_between_two_renames_leaves_the_old_one_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    publish_next(tmp_path)
    steps = []

    def dying(source: Path, target: Path) -> None:
        steps.append(target.name)
        if len(steps) == step:
            raise KeyboardInterrupt
        source.replace(target)

    monkeypatch.setattr(durable, "rename_durably", dying)
    monkeypatch.setattr(generation, "rename_durably", dying)
    with pytest.raises(KeyboardInterrupt):
        publish_next(tmp_path, "newer")
    monkeypatch.undo()
    assert steps == ["manifest.json", "000002", "CURRENT"][:step]
    assert open_current(tmp_path).manifest.generation == "000001"
    require_whole(open_current(tmp_path))


def test_an_empty_folder_has_no_index_and_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(IndexNotFoundError, match=r"no published index here; run: kalm-cache index CORPUS --index"):
        open_current(tmp_path)
    with pytest.raises(IndexNotFoundError):
        open_current(tmp_path / "none")


@pytest.mark.parametrize("name", [b"000009\n", b"", b"\n", b"../elsewhere"])
def test_a_current_that_names_no_generation_is_not_found(tmp_path: Path, name: bytes):
    publish_next(tmp_path)
    (tmp_path / "CURRENT").write_bytes(name)
    with pytest.raises(IndexNotFoundError, match=r"CURRENT names a generation without a manifest\.json"):
        open_current(tmp_path)


def test_a_current_that_is_no_text_is_a_store_error(tmp_path: Path):
    publish_next(tmp_path)
    (tmp_path / "CURRENT").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match="CURRENT: cannot be read"):
        open_current(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b'"text"'])
def test_a_manifest_that_is_no_json_object_is_a_store_error(tmp_path: Path, content: bytes):
    folder = publish_next(tmp_path).folder
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json: "):
        open_current(tmp_path)


def test_another_schema_version_is_refused_with_both_sides_named(tmp_path: Path):
    folder = publish_next(tmp_path).folder
    rewrite(folder / "manifest.json", schema_version=2)
    with pytest.raises(IndexMismatchError, match="schema version 2, this version reads 1; re-index"):
        open_current(tmp_path)


@pytest.mark.parametrize("change", [{"created_at": "2027"}, {"counts": None}, {"checksum": None}, {"extra": 1}])
def test_a_manifest_that_was_changed_after_it_was_published_is_refused(tmp_path: Path, change: dict[str, object]):
    folder = publish_next(tmp_path).folder
    rewrite(folder / "manifest.json", **change)
    with pytest.raises(StoreError, match="checksum mismatch, the file was changed after it was published"):
        open_generation(folder)


@pytest.mark.parametrize("change", [{"fingerprint": {}}, {"counts": 3}, {"files": []}, {"unknown": 1}])
def test_a_manifest_with_other_fields_is_refused(tmp_path: Path, change: dict[str, object]):
    folder = publish_next(tmp_path).folder
    fields = json.loads((folder / "manifest.json").read_text()) | change
    del fields["checksum"]
    rewrite(folder / "manifest.json", **fields, checksum=generation._checksum(fields))
    with pytest.raises(StoreError, match="a field is missing or unknown"):
        open_generation(folder)


def test_the_manifest_file_reads_back_as_it_was_written(tmp_path: Path):
    _, manifest = build(tmp_path)
    manifest = replace(manifest, parent="000007", model="/some/ümlaut", files={"ü": FileReceipt(1, "ab")})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest.to_json())
    assert open_generation(folder).manifest == manifest


def test_a_missing_or_cut_file_is_found_by_its_size(tmp_path: Path):
    published = publish_next(tmp_path)
    require_whole(published)
    (published.shard / "passages.lmdb").write_text("dat")
    with pytest.raises(StoreError, match=r"passages\.lmdb has 3 bytes, its receipt says 4; run kalm-cache verify"):
        require_whole(published)
    (published.shard / "passages.lmdb").unlink()
    with pytest.raises(StoreError, match=r"passages\.lmdb is missing, its receipt says 4"):
        require_whole(published)


def test_building_goes_on_in_the_unfinished_folder_or_one_above_the_highest_number(tmp_path: Path):
    generations = tmp_path / "generations"
    assert building_folder(tmp_path) == generations / "000001.building"
    for name in ("000001", "000009"):
        (generations / name).mkdir(parents=True)
    assert building_folder(tmp_path) == generations / "000010.building"
    (generations / "000010.building").mkdir()
    assert building_folder(tmp_path) == generations / "000010.building"


def test_receipts_name_every_file_but_the_manifest(tmp_path: Path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("manifest.json", "x", "a/y", "a/b/z"):
        (tmp_path / name).write_bytes(name.encode())
    found = receipts(tmp_path)
    assert sorted(found) == ["a/b/z", "a/y", "x"]
    assert found["a/y"].bytes == 3


def test_only_one_process_builds_in_a_folder(tmp_path: Path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom kalm_cache.generation import build_lock\n"
        "with build_lock(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(IndexLockedError, match="another process is building here"), build_lock(tmp_path):
        pass
    other.kill()  # and a dead process holds no lock
    other.communicate()
    with build_lock(tmp_path):
        pass


def test_the_lock_is_free_again_after_an_error_in_the_build(tmp_path: Path):
    with pytest.raises(ValueError, match="in the build"), build_lock(tmp_path):
        raise ValueError("in the build")
    with build_lock(tmp_path), pytest.raises(IndexLockedError), build_lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), build_lock(tmp_path / "file"):
        pass
