"""Files that are whole or not there, also when the writer is killed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kalm_cache.storage.durable import file_digest, publish_folder, rename_durably, sync_tree, write_atomically
from tests.waiting import wait_for


def test_a_written_file_replaces_the_older_one_and_leaves_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "CURRENT"
    write_atomically(path, b"000001\n")
    write_atomically(path, b"000002\n")
    assert path.read_bytes() == b"000002\n"
    assert [found.name for found in tmp_path.iterdir()] == ["CURRENT"]


def test_what_a_killed_writer_left_is_overwritten(tmp_path: Path):
    (tmp_path / "CURRENT.tmp").write_bytes(b"half of a much longer na")
    write_atomically(tmp_path / "CURRENT", b"000001\n")
    assert (tmp_path / "CURRENT").read_bytes() == b"000001\n"


def test_a_failed_write_leaves_the_older_file(tmp_path: Path):
    path = tmp_path / "CURRENT"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"


def test_readers_see_the_old_or_the_new_content_while_a_writer_is_killed(tmp_path: Path):
    path = tmp_path / "CURRENT"
    old, new = b"a" * 100_000, b"b" * 100_000
    write_atomically(path, old)
    script = (
        "import sys\nfrom pathlib import Path\nfrom kalm_cache.storage.durable import write_atomically\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for letter in (b'b', b'a'):\n"
        "        write_atomically(Path(sys.argv[1]), letter * 100_000)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    wait_for(lambda: path.read_bytes() == new)  # it does write
    seen = {path.read_bytes() for _ in range(300)}
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert seen | {path.read_bytes()} <= {old, new}


def test_renaming_moves_a_folder_with_its_content(tmp_path: Path):
    (tmp_path / "000001.building").mkdir()
    (tmp_path / "000001.building" / "file").write_bytes(b"x")
    rename_durably(tmp_path / "000001.building", tmp_path / "000001")
    assert (tmp_path / "000001" / "file").read_bytes() == b"x"
    assert not (tmp_path / "000001.building").exists()


def test_publishing_a_folder_removes_the_one_in_its_place(tmp_path: Path):
    for name, content in (("bm25", b"old"), ("bm25.building", b"new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content.decode()).write_bytes(content)
    publish_folder(tmp_path / "bm25.building", tmp_path / "bm25")
    assert [path.name for path in tmp_path.rglob("*")] == ["bm25", "new"]


def test_a_tree_syncs_with_empty_and_nested_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").write_bytes(b"x")
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink()))
    sync_tree(tmp_path)
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "file"]


@pytest.mark.parametrize("content", [b"", b"abc", bytes(3_000_000)])
def test_digests_are_those_of_sha256(tmp_path: Path, content: bytes):
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
