"""Compiling the native kernels, mostly with compilers that only pretend: a real run takes seconds."""

import ctypes
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from kalm_cache.model.kernels import compile
from kalm_cache.model.kernels.native import NativeKernels

WARNING = "which are slower"


def fresh() -> ctypes.CDLL | None:
    """`native_library` without what it remembers."""
    return compile.compiled_library.__wrapped__(compile.SOURCE)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    """An empty cache folder, neither `$CXX` nor an instruction set chosen, and every message kept."""
    caplog.set_level(logging.INFO, logger="kalm_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(compile.MARCH, raising=False)
    return tmp_path / "cache" / "kalm-cache"


@pytest.fixture(scope="module")
def compiled() -> Path:
    """Some shared library that holds the kernels."""
    library = compile.native_library()
    if library is None:
        pytest.skip("no C++ compiler here")
    return Path(library._name)


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


def test_a_real_compiler_makes_kernels_that_work(cache: Path, caplog: pytest.LogCaptureFixture):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))) or compile.native_library() is None:
        pytest.skip("no C++ compiler here")
    library = fresh()
    assert library is not None
    [path] = cache.iterdir()  # nothing else is left behind
    assert path.name.startswith("kernels-")
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


def test_a_damaged_file_in_the_cache_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: Path, cache: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("CXX", pretender(tmp_path, tmp_path / "empty"))
    (tmp_path / "empty").touch()
    assert fresh() is None
    assert WARNING in caplog.text


def test_the_library_is_looked_for_once_a_process(monkeypatch: pytest.MonkeyPatch):
    first = compile.native_library()
    monkeypatch.setenv("PATH", "")
    assert compile.native_library() is first
