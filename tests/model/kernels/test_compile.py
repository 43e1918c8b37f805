"""Compiling the native kernels, mostly with compilers that only pretend: a real run takes seconds."""

import ctypes
import ctypes.util
import hashlib
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from kalm_cache.model.kernels import compile, library_folder
from kalm_cache.model.kernels.native import SYMBOLS, NativeKernels, native_library

WARNING = "which are slower"


def fresh() -> ctypes.CDLL | None:
    """`native_library` without what it remembers."""
    return compile.compiled_library.__wrapped__(compile.SOURCE, SYMBOLS)


try_out = compile.try_out


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """An empty cache folder, neither `$CXX` nor an instruction set chosen, messages kept, no trial (it is slow)."""
    monkeypatch.setattr(compile, "try_out", lambda library, symbols: None)
    caplog.set_level(logging.INFO, logger="kalm_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(compile.MARCH, raising=False)
    return tmp_path / "cache" / "kalm-cache"


@pytest.fixture(scope="module", autouse=True)
def kernels() -> ctypes.CDLL | None:
    """The kernels from the cache of this machine, loaded before a test names a cache of its own, which goes with it."""
    native_library()
    return fresh()


@pytest.fixture
def compiled(kernels: ctypes.CDLL | None) -> Path:
    """Some shared library that holds the kernels."""
    if kernels is None:
        pytest.skip("no C++ compiler here")
    return Path(kernels._name)


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def pretender(folder: Path, compiled: Path, version: str = "c++ 1.0", name: str = "pretender") -> str:
    """A compiler that writes its arguments to `calls` and, asked to link, copies a library that is there already."""
    body = f"""
if [ "$1" = --version ]; then echo "{version}"; exit; fi
echo "$@" >> {folder}/calls
for last; do :; done
if [ "$1" = -shared ]; then cp {compiled} "$last"; else touch "$last"; fi"""
    return script(folder / name, body)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_real_compiler_makes_kernels_that_work(
    kernels: ctypes.CDLL | None, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compile, "try_out", try_out)
    if kernels is None:
        pytest.skip("no C++ compiler here")
    library = fresh()
    assert library is not None
    [path] = cache.iterdir()  # nothing else is left behind
    assert path.name.startswith("kernels-")
    assert path.name.endswith(f"-{hashlib.sha256(path.read_bytes()).hexdigest()}.so")
    assert "compiling native.cpp, once for this processor" in caplog.text
    normed = NativeKernels(library).norm(torch.tensor([[2.0, 2.0]]), torch.ones(2), 0.0, quantized=False)
    assert isinstance(normed, torch.Tensor)
    assert normed.tolist() == [[1.0, 1.0]]


def test_no_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh() is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("no C++ compiler")


@pytest.mark.parametrize("name", ["c++", "g++", "clang++"])
def test_any_of_the_usual_compilers_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, name: str
):
    pretender(tmp_path, compiled, name=name)
    for tool in ("sh", "cp", "touch"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fresh() is not None
    assert len(calls(tmp_path)) == 2


def test_a_compiler_that_cannot_compile_is_a_warning_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    broken = script(
        tmp_path / "broken", "[ $1 = --version ] && exit\necho first >&2\necho 'no such -march' >&2\nexit 1"
    )
    monkeypatch.setenv("CXX", broken)
    assert fresh() is None
    assert "no such -march" in caplog.text
    assert WARNING in caplog.text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("body", ["exit 1", "exit 0"])
def test_a_compiler_that_says_no_version_or_makes_nothing_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, body: str
):
    monkeypatch.setenv("CXX", script(tmp_path / "silent", body))
    assert fresh() is None
    assert WARNING in caplog.text


def test_a_compiler_that_is_not_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    assert fresh() is None
    assert WARNING in caplog.text


def test_a_compiler_that_does_not_end_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(compile, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("CXX", script(tmp_path / "slow", "exec sleep 20"))
    assert fresh() is None
    assert WARNING in caplog.text


def test_neither_is_one_whose_own_children_do_not_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(compile, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("CXX", script(tmp_path / "slow", "sleep 600 & wait"))  # the child holds the pipes open
    assert fresh() is None
    assert "did not end" in caplog.text


def test_last_words_that_are_no_utf_8_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", script(tmp_path / "garbage", "printf 'caf\\351\\n' >&2; exit 1"))
    assert fresh() is None
    assert "caf\ufffd" in caplog.text


def test_a_cache_folder_that_cannot_be_made_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    (tmp_path / "a file").touch()  # root may write to every folder, but not below a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert fresh() is None
    assert WARNING in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_folder_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    cache.mkdir(parents=True)
    cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert fresh() is None
    assert WARNING in caplog.text


def test_a_user_without_a_home_folder_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, caplog: pytest.LogCaptureFixture
):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert fresh() is None
    assert WARNING in caplog.text


def test_what_was_compiled_is_used_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    first, second = fresh(), fresh()
    assert first is not None
    assert second is not None
    assert first._name == second._name
    assert len(calls(tmp_path)) == 2  # one to compile, one to link
    assert [path.name for path in cache.iterdir()] == [Path(first._name).name]


def test_another_compiler_source_or_processor_compiles_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    assert fresh() is not None
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled, version="c++ 2.0"))
    assert fresh() is not None
    monkeypatch.setattr(compile, "_processor", lambda: b"another processor")
    assert fresh() is not None
    source = tmp_path / "native.cpp"
    source.write_text("// other code")
    monkeypatch.setattr(compile, "SOURCE", source)
    assert fresh() is not None
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize(("value", "expected"), [(None, "native"), ("", "native"), ("x86-64-v3", "x86-64-v3")])
def test_the_instruction_set_is_the_processors_or_what_the_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, value: str | None, expected: str
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    if value is not None:
        monkeypatch.setenv(compile.MARCH, value)
    assert fresh() is not None
    assert f" -march={expected} " in calls(tmp_path)[0]


def test_each_instruction_set_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    for march in ("native", "x86-64-v2", "x86-64-v3"):
        monkeypatch.setenv(compile.MARCH, march)
        assert fresh() is not None
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "a link", "writable by all"])
def test_a_kept_library_that_is_not_what_was_kept_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, damage: str
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    assert fresh() is not None
    [path] = cache.iterdir()
    content = path.read_bytes()
    path.unlink()
    if damage == "a link":
        (tmp_path / "elsewhere.so").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        flipped = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
        path.write_bytes({"cut": content[: len(content) // 2], "flipped": flipped, "empty": b""}.get(damage, content))
        path.chmod(0o777 if damage == "writable by all" else 0o755)
    assert fresh() is not None
    assert len(calls(tmp_path)) == 4
    [again] = cache.iterdir()
    assert (again.is_symlink(), again.read_bytes()) == (False, content)


def test_a_library_without_its_functions_is_a_warning_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    libm = ctypes.util.find_library("m")
    other = next((path for path in Path("/").glob(f"lib/*/{libm}")), None)
    if other is None:
        pytest.skip("no other library is found here")
    monkeypatch.setattr(compile, "try_out", try_out)
    monkeypatch.setenv("CXX", pretender(tmp_path, other))
    assert fresh() is None
    assert "it lacks quantize" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_library_that_ends_its_process_is_a_warning_and_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    cut = tmp_path / "cut.so"
    cut.write_bytes(compiled.read_bytes()[:9000])  # its headers promise more: loading it is a SIGBUS
    monkeypatch.setattr(compile, "try_out", try_out)
    monkeypatch.setenv("CXX", pretender(tmp_path, cut))
    assert fresh() is None
    assert "the trial of what was compiled" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_folder_that_others_can_write_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert fresh() is None
    assert f"{cache} can be written by others (mode 777)" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text
    assert calls(tmp_path) == []  # not even compiled


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    cache.mkdir(parents=True)
    os.chown(cache, 12345, -1)
    assert fresh() is None
    assert f"{cache} belongs to another user (uid 12345)" in caplog.text


def test_a_folder_from_which_nothing_is_executed_is_refused_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    mounted = os.statvfs_result((*os.statvfs(tmp_path)[:8], os.ST_NOEXEC, *os.statvfs(tmp_path)[9:]))
    monkeypatch.setattr(library_folder.os, "statvfs", lambda path: mounted)
    assert fresh() is None
    assert "noexec" in caplog.text


def test_what_a_killed_compilation_left_goes_after_an_hour(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path
):
    monkeypatch.setenv("CXX", pretender(tmp_path, compiled))
    for name in ("building-old", "building-new"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / "building-old", (0, 0))
    cache.chmod(0o700)
    assert fresh() is not None
    assert {path.name for path in cache.glob("building-*")} == {"building-new"}


def test_a_damaged_file_in_the_cache_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, tmp_path / "empty"))
    (tmp_path / "empty").touch()
    assert fresh() is None
    assert WARNING in caplog.text


def test_the_library_is_looked_for_once_a_process(monkeypatch: pytest.MonkeyPatch):
    first = native_library()
    monkeypatch.setenv("PATH", "")
    assert native_library() is first
