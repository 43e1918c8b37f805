"""The fault injection shim: compiled with the machine's C compiler, preloaded into children, armed from within them.

What it counts are the calls that change files below a folder; each is a point at which a process can be killed, or at
which the system can refuse.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("shim.c")
STARTED_WITH = "KALM_TORTURE"  # arms a program from its start


class Mode(IntEnum):
    """What happens at the nth call; as in shim.c."""

    OFF = 0
    COUNT = 1  # nothing; every call is traced
    KILL_BEFORE = 2
    KILL_AFTER = 3
    TORN = 4  # half of a write, then death; after the call, if it is no write
    FAIL = 5  # it is refused, and so are all after it that the error fits
    FAIL_ONCE = 6
    SHORT = 7  # half of a write and no error; then as FAIL


@dataclass(frozen=True, slots=True)
class Fault:
    """What to do at which call. `error`: errno of what is refused; `locks`: errno of every lock; `clock`: seconds."""

    mode: Mode = Mode.OFF
    nth: int = 0
    error: int = 0
    locks: int = 0
    clock: int = 0

    def __str__(self) -> str:
        named = [f"{self.mode.name.lower()} {self.nth}"] if self.mode else []
        named += [errno.errorcode[self.error]] if self.error else []
        named += [f"locks {errno.errorcode[self.locks]}"] if self.locks else []
        return ", ".join([*named, *([f"clock ±{self.clock} s"] if self.clock else [])]) or "no fault"

    def at_start(self, folder: Path) -> dict[str, str]:
        """The environment variable that arms a program from its start."""
        return {STARTED_WITH: f"{int(self.mode)}:{self.nth}:{self.error}:{folder}"}


class Call(NamedTuple):
    """One traced call: `kind` as in shim.c, the function's name, and the path below the watched folder.

    `detail`: where a rename or a link comes from; how a file is opened.
    """

    kind: str
    name: str
    path: str
    detail: str = ""


def compiler() -> str | None:
    """The C compiler of this machine, if it has one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compile_shim() -> Path:
    """The shared object, compiled once for each version of its source. Needs a C compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    built = Path(tempfile.gettempdir()) / f"kalm-torture-{os.getuid()}-{digest}.so"
    if not built.exists():
        beside = built.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        command = [compiler() or "cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(beside), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        beside.replace(built)
    return built


def preloaded() -> dict[str, str]:
    """The environment variable with which a process starts with the shim inside."""
    return {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {compile_shim()}".strip()}


def arm(folder: Path, fault: Fault, shadow: Path | None = None) -> None:
    """Arm this process, which was started with `preloaded`.

    `shadow`: a folder for what each file holds whenever it is synced, under the number of that call; of a count.
    """
    shim = _loaded()
    if shadow is not None:
        shim.torture_shadow(os.fsencode(shadow))
    shim.torture_locks(fault.locks)
    shim.torture_clock(ctypes.c_long(fault.clock))
    # locks are looked at below an armed folder only
    shim.torture_arm(
        os.fsencode(folder), int(fault.mode or Mode.FAIL), ctypes.c_long(fault.nth or 1 << 62), fault.error
    )


def disarm() -> None:
    """Nothing happens any more."""
    _loaded().torture_disarm()


def traced() -> list[Call]:
    """Every call since this process was armed with `Mode.COUNT`."""
    text = ctypes.c_char_p()
    length = _loaded().torture_trace(ctypes.byref(text))
    lines = ctypes.string_at(text, length).decode().splitlines() if text else []
    return [Call(*line.split("\t", 3)) for line in lines]


def by_kind(calls: list[Call]) -> dict[str, int]:
    """How many calls there are of each kind."""
    return dict(sorted(Counter(call.kind for call in calls).items()))


def _loaded() -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.torture_trace.restype = ctypes.c_long
    return shim
