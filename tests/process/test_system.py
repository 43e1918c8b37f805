"""What the system refuses, in words that say what to do; and the limit of open files."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import kalm_cache.process.system
from kalm_cache.process.system import describe, raise_open_files_limit, refused, way_out


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EMFILE, "raise the limit (ulimit -n), or fold the segments: kalm-cache fold"),
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EROFS, "the file system is read-only: mount it writable, or copy the index elsewhere"),
    ],
)
def test_what_the_system_refuses_has_a_way_out_that_is_not_verify(number: int, expected: str):
    error = OSError(number, os.strerror(number), "/index/states.lmdb")
    assert way_out(error) == expected
    assert refused(error) == f"{os.strerror(number)}; {expected}"
    assert describe(error) == f"/index/states.lmdb: {os.strerror(number)}; {expected}"


def test_a_library_that_quotes_the_system_is_understood():
    error = RuntimeError("Error: 'f' failed: could not open dense.faiss for reading: Too many open files")
    assert way_out(error) == "raise the limit (ulimit -n), or fold the segments: kalm-cache fold"


def test_damage_is_for_verify():
    assert way_out(ValueError("cannot reshape")) is None
    assert refused(ValueError("cannot reshape")) == "run kalm-cache verify: cannot reshape"


def test_a_missing_permission_says_who_owns_what_and_who_asks(tmp_path: Path):
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "gone" / "file"))
    said = way_out(error)
    assert said is not None
    assert f"{tmp_path} belongs to " in said
    assert f"(uid {os.geteuid()})" in said
    assert "chown or chmod it" in said


def test_a_write_cut_short_by_a_full_disk_is_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    error = RuntimeError("mdb_txn_commit: Input/output error")
    assert refused(error, tmp_path) == "Input/output error; the disk fails: check it (dmesg) before anything else"
    monkeypatch.setattr(kalm_cache.process.system, "FULL_BELOW_BYTES", 1 << 62)
    assert refused(error, tmp_path) == "No space left on device; the disk is full: free some space"


def test_the_soft_limit_of_open_files_becomes_the_hard_one():
    code = "from kalm_cache.process.system import raise_open_files_limit; print(raise_open_files_limit())"
    command = ["bash", "-c", f"ulimit -Sn 64 && exec {sys.executable} -c '{code}'"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(said) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def test_where_the_limit_cannot_be_raised_it_stays(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_open_files_limit() == 64
