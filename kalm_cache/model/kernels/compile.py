"""Compile native.cpp (attention and the other kernels) for this very processor, once, and load it.

The environment variable `KALM_CACHE_KERNEL_MARCH` names another instruction set (`x86-64-v3`, say), as the compiler's
`-march` takes it. The file's name in the cache holds a digest of it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
MARCH = "KALM_CACHE_KERNEL_MARCH"
TIMEOUT_S = 120
logger = logging.getLogger(__name__)


def native_library() -> ctypes.CDLL | None:
    """The compiled kernels, `native.cpp`; see `compiled_library`."""
    return compiled_library(SOURCE)


@functools.cache
def compiled_library(source: Path) -> ctypes.CDLL | None:
    """What a C++ file makes, or `None` (and a logged warning) where there is no compiler, or what it made is no use."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        logger.warning("no C++ compiler (c++, g++, clang++ or $CXX): plain torch kernels are used, which are slower")
        return None
    try:
        path = cache_folder() / f"kernels-{_digest(compiler, source)}.so"
        if not path.is_file():
            _compile(compiler, source, path)
        return ctypes.CDLL(str(path))  # OpenMP's functions are those that torch has loaded: one pool of threads
    except (OSError, RuntimeError, subprocess.SubprocessError) as exc:  # RuntimeError: there is no home folder
        reason = exc.stderr.strip().splitlines()[-1:] if isinstance(exc, subprocess.CalledProcessError) else exc
        logger.warning("the native kernels cannot be used (%s): plain torch kernels are, which are slower", reason)
        return None


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Two steps: linked without an OpenMP library of its own, so that torch's serves both."""
    logger.info("compiling %s, once for this processor", source.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled, linked = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        for command in (
            [compiler, *_flags(), f"-I{SOURCE.parent}", "-c", str(source), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        linked.replace(path)  # in one step: two processes that compile at once never load half a file


def _flags() -> tuple[str, ...]:
    return (*FLAGS, f"-march={os.environ.get(MARCH) or 'native'}")


def cache_folder() -> Path:
    """The folder of compiled kernels. Raises `RuntimeError` where there is no home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kalm-cache"


def _digest(compiler: str, source: Path) -> str:
    """Changes with whatever changes the code: source, headers, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=TIMEOUT_S).stdout
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
