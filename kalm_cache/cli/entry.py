"""`main`: streams and signals first, before anything slow is imported; then the commands; then the exit code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kalm_cache.cli.failures import report_failure
from kalm_cache.cli.streams import open_streams
from kalm_cache.errors import UsageError
from kalm_cache.process.stopping import catch_signals

GC_THRESHOLD = 10_000  # objects; with Python's 700, a tenth of an import's time goes into looking for garbage


def main() -> None:
    """Entry point of the `kalm-cache` script."""
    open_streams()
    catch_signals()
    gc.set_threshold(GC_THRESHOLD)
    end = _End()
    exit_code = _exit_code_of(_run_app)
    end.exit_code = _exit_code_of(sys.stdout.flush) or exit_code
    sys.exit(end.exit_code)


class _End:
    """Ends the process after all that others do at its exit, and before Python takes its modules apart.

    That would take a quarter of the time of importing torch, for memory that the system frees anyway.
    """

    def __init__(self) -> None:
        self.exit_code = 1  # of a bug, whose traceback has been printed by then
        self._process = os.getpid()
        atexit.register(self._now)  # the first one registered is the last one called

    def _now(self) -> None:
        if os.getpid() != self._process:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(self.exit_code)


def _run_app() -> None:
    _require_working_directory()
    from kalm_cache.cli.app import app

    app()


def _require_working_directory() -> None:
    """Without one, libraries end the process in words of their own."""
    try:
        Path.cwd()
    except OSError as exc:
        raise UsageError("the working directory is gone, or cannot be read: cd into another one") from exc


def _exit_code_of(step: Callable[[], None]) -> int:
    try:
        step()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except BaseException as exc:
        exit_code = report_failure(exc)
        if exit_code is None:
            raise
        return exit_code
    return 0
