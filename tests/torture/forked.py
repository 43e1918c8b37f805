"""Programs as forks: verify reads a damaged store in a process of its own, and importing costs more than reading."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import traceback
from typing import Any


def run_forked(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
    """As `subprocess.run` for `python -m module …`, in a fork of this process, which has all of it imported."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaint:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(complaint.fileno(), 2)
                sys.stdout = os.fdopen(1, "w")
                sys.argv = command[2:]
                importlib.import_module(command[2]).main()
                sys.stdout.flush()
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        complaint.seek(0)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return subprocess.CompletedProcess(command, code, said.read(), complaint.read())
