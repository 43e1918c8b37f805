"""Compile native.cpp (attention and the other kernels) for this very processor, once, and load it.

The environment variable `KALM_CACHE_KERNEL_MARCH` names another instruction set (`x86-64-v3`, say), as the compiler's
`-march` takes it. The file's name in the cache holds a digest of it, and one of its own content (library_folder.py).
What the compiler made is tried in a process of its own (trial.py) before it is kept: a library that was cut, or is for
another processor, would end every process that loads it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kalm_cache.model.kernels.library_folder import NoKernelsError, find, keep, own_folder

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
MARCH = "KALM_CACHE_KERNEL_MARCH"
TIMEOUT_S = 120
UNFINISHED = "building-"
logger = logging.getLogger(__name__)


@functools.cache
def compiled_library(source: Path, symbols: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """What a C++ file makes, or `None` (and a logged warning) where there is no compiler, or what it made is no use.

    Args:
        source: the file.
        symbols: the functions that the library must have.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        logger.warning("no C++ compiler (c++, g++, clang++ or $CXX): plain torch kernels are used, which are slower")
        return None
    try:
        return _library(compiler, source, symbols)
    except (OSError, RuntimeError, NoKernelsError) as exc:  # RuntimeError: there is no home folder
        logger.warning("the native kernels cannot be used (%s): plain torch kernels are, which are slower", exc)
        return None


def _library(compiler: str, source: Path, symbols: tuple[str, ...]) -> ctypes.CDLL:
    """The library that is kept already, if it is whole, else a new one."""
    folder, name = own_folder(), f"kernels-{_digest(compiler, source)}"
    path = find(folder, name)
    library = None if path is None else _loaded(path, symbols)
    return library or _load(_compile(compiler, source, symbols, folder, name), symbols)


def _loaded(path: Path, symbols: tuple[str, ...]) -> ctypes.CDLL | None:
    """A kept library; one of no use is removed."""
    with suppress(OSError, NoKernelsError):
        return _load(path, symbols)
    path.unlink(missing_ok=True)
    return None


def _load(path: Path, symbols: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))  # OpenMP's functions are those that torch has loaded: one pool of threads
    missing = [name for name in symbols if not hasattr(library, name)]
    if missing:
        raise NoKernelsError(f"{path} lacks {missing[0]}")
    return library


def _compile(compiler: str, source: Path, symbols: tuple[str, ...], folder: Path, name: str) -> Path:
    """Two steps: linked without an OpenMP library of its own, so that torch's serves both."""
    logger.info("compiling %s, once for this processor", source.name)
    _remove_unfinished(folder)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as workspace:
        compiled, linked = Path(workspace, "kernels.o"), Path(workspace, "kernels.so")
        for command in (
            [compiler, *_flags(), f"-I{SOURCE.parent}", "-c", str(source), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked)],
        ):
            _run(command, TMPDIR=workspace)  # a compiler's own files are nobody else's, either
        try_out(linked, symbols)
        return keep(folder, name, linked)


def _remove_unfinished(folder: Path) -> None:
    """What compilations left that were killed: none takes as long as an hour."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                shutil.rmtree(path)


def try_out(library: Path, symbols: tuple[str, ...]) -> None:
    """Load and use a library in a process of its own. Raises `NoKernelsError` where that fails."""
    if "python" not in Path(sys.executable or "").name:
        return  # an embedded interpreter: there is none to start
    path = os.pathsep.join(entry or "." for entry in sys.path)
    _run([sys.executable, "-m", "kalm_cache.model.kernels.trial", str(library), *symbols], PYTHONPATH=path)


def _run(command: Sequence[str], **environment: str) -> bytes:
    """What a command prints. Raises `OSError`, and `NoKernelsError` with its last words where it fails or goes on."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too: that would go on, and hold the pipes open
            if isinstance(exc, subprocess.TimeoutExpired):
                raise NoKernelsError(f"{_shown(command)} did not end within {TIMEOUT_S} s") from exc
            raise
    if process.returncode:
        raise NoKernelsError(f"{_shown(command)} {_how_it_ended(process.returncode, err)}")
    return out


def _shown(command: Sequence[str]) -> str:
    return "the trial of what was compiled" if command[0] == sys.executable else command[0]


def _how_it_ended(code: int, err: bytes) -> str:
    if code < 0:
        return f"ended with {signal.Signals(-code).name}: is {MARCH} an instruction set of this processor?"
    return f"failed: {' '.join(err.decode(errors='replace').strip().splitlines()[-1:]) or f'exit code {code}'}"


def _flags() -> tuple[str, ...]:
    return (*FLAGS, f"-march={os.environ.get(MARCH) or 'native'}")


def _digest(compiler: str, source: Path) -> str:
    """Changes with whatever changes the code: source, headers, flags, compiler, processor."""
    version = _run([compiler, "--version"])
    code = b"".join(path.read_bytes() for path in (source, *HEADERS))
    return hashlib.sha256(code + " ".join(_flags()).encode() + version + _processor()).hexdigest()[:16]


def _processor() -> bytes:
    """What `-march=native` looks at: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        import platform

        return platform.processor().encode() or platform.machine().encode()
    return b"\n".join(sorted({line for line in lines if line.startswith((b"flags", b"model name", b"Features"))}))
