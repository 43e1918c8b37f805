"""The manifest: what is read back, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kalm_cache.errors import IndexMismatchError, StoreError
from kalm_cache.generations.generation import open_current, open_generation
from kalm_cache.generations.manifest import Counts, FileReceipt
from tests.generations.builds import build, change_undetected, publish_next, rewrite


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b'"text"'])
def test_a_manifest_that_is_no_json_object_is_a_store_error(tmp_path: Path, content: bytes):
    folder = publish_next(tmp_path).folder
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.json: "):
        open_current(tmp_path)


def test_another_schema_version_is_refused_with_both_sides_named(tmp_path: Path):
    folder = publish_next(tmp_path).folder
    rewrite(folder / "manifest.json", schema_version=2)
    with pytest.raises(IndexMismatchError, match=r"manifest\.json: schema version 2, this version reads 3; re-index"):
        open_current(tmp_path)


@pytest.mark.parametrize("version", [None, "3", [3]])
def test_a_manifest_without_a_schema_version_was_damaged(tmp_path: Path, version: object):
    folder = publish_next(tmp_path).folder
    rewrite(folder / "manifest.json", schema_version=version)
    with pytest.raises(StoreError, match=r"manifest\.json: has no schema version, the file was changed after"):
        open_generation(folder)


@pytest.mark.parametrize("change", [{"created_at": "2027"}, {"counts": None}, {"checksum": None}, {"extra": 1}])
def test_a_manifest_that_was_changed_after_it_was_published_is_refused(tmp_path: Path, change: dict[str, object]):
    folder = publish_next(tmp_path).folder
    rewrite(folder / "manifest.json", **change)
    with pytest.raises(StoreError, match="checksum mismatch, the file was changed after it was published"):
        open_generation(folder)


@pytest.mark.parametrize("change", [{"fingerprint": {}}, {"counts": 3}, {"files": []}, {"unknown": 1}])
def test_a_manifest_with_other_fields_is_refused(tmp_path: Path, change: dict[str, object]):
    folder = publish_next(tmp_path).folder
    change_undetected(folder / "manifest.json", change)
    with pytest.raises(StoreError, match="a field is missing or unknown"):
        open_generation(folder)


def test_the_manifest_file_reads_back_as_it_was_written(tmp_path: Path):
    _, manifest = build(tmp_path)
    manifest = replace(manifest, parent="000007", model="/some/ümlaut", files={"ü": FileReceipt(1, "ab")})
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest.to_json())
    assert open_generation(folder).manifest == manifest


def test_counts_add_up_and_come_off():
    assert Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50) == Counts(11, 22, 33, 44, 55)
    assert Counts(11, 22, 33, 44, 55) - Counts(1, 2, 3, 4, 5) == Counts(10, 20, 30, 40, 50)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"generation": "../000001"}, "generation"),
        ({"parent": "/etc"}, "parent"),
        ({"width": 0}, "width"),
        ({"width": 10**9 * 10}, "width"),
        ({"next_ordinal": -1}, "next_ordinal"),
        ({"next_ordinal": 2}, "next_ordinal: it is 2, and a segment's is 5"),
        ({"deleted": True}, "deleted"),
        ({"dense_index": "pickle"}, "dense_index"),
        ({"files": {"../../CURRENT": {"bytes": 1, "sha256": ""}}}, "files"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}, "files"),
        ({"files": {"a": {"bytes": -1, "sha256": ""}}}, r"files\.a\.bytes"),
        ({"shards": []}, "segments"),
    ],
)
def test_a_manifest_of_a_stranger_whose_checksum_fits_is_refused_by_field(
    tmp_path: Path, change: dict[str, object], field: str
):
    folder = publish_next(tmp_path).folder
    change_undetected(folder / "manifest.json", change)
    with pytest.raises(StoreError, match=rf"manifest\.json: .*{field}"):
        open_current(tmp_path)
