"""Who may change an index folder, and what is being read."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from kalm_cache.errors import IndexLockedError, StoreError
from kalm_cache.storage.locks import build_lock, exclude, share


def test_only_one_process_builds_in_a_folder(tmp_path: Path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom kalm_cache.storage.locks import build_lock\n"
        "with build_lock(Path(sys.argv[1])):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(IndexLockedError, match="another process is changing it"), build_lock(tmp_path):
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


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("existed", [False, True])
def test_a_file_system_without_locks_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, existed: bool
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, "No locks available")

    index = tmp_path / "index"
    if existed:
        index.mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    refused = r"refuses locks \(No locks available.*put the index on a local disk"
    with pytest.raises(StoreError, match=refused) as raised, build_lock(index):
        pass
    assert not isinstance(raised.value, IndexLockedError)
    assert index.exists() == existed
    assert not (index / "LOCK").exists()


def test_a_folder_of_a_read_only_file_system_is_a_store_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "LOCK"))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(StoreError, match=r"cannot be written: .*Read-only file system"), build_lock(tmp_path):
        pass


def test_what_is_shared_is_not_free_until_all_have_let_go(tmp_path: Path):
    path = tmp_path / "manifest.json"
    path.write_text("{}")
    first, second = share(path), share(path)
    assert first is not None
    assert second is not None
    for lock in (first, second):
        with exclude(path) as is_free:
            assert not is_free
        lock.release()
        lock.release()
    with exclude(path) as is_free:
        assert is_free
        assert share(path) is None  # it is being removed


def test_what_is_gone_cannot_be_shared_and_nobody_uses_it(tmp_path: Path):
    path = tmp_path / "manifest.json"
    assert share(path) is None
    with exclude(path) as is_free:
        assert is_free


def test_where_locks_are_refused_readers_go_without_and_nobody_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "manifest.json"
    path.write_text("{}")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = share(path)
    assert lock is not None
    lock.release()
    with pytest.raises(StoreError, match="whether it is being read cannot be told"), exclude(path):
        pass
