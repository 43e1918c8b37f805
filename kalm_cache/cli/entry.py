"""`main`: streams and signals first, before anything slow is imported; then the commands; then the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kalm_cache.cli.failures import report_failure
from kalm_cache.cli.streams import open_streams
from kalm_cache.errors import UsageError
from kalm_cache.stopping import catch_signals


def main() -> None:
    """Entry point of the `kalm-cache` script."""
    open_streams()
    catch_signals()
    exit_code = _exit_code_of(_run_app)
    sys.exit(_exit_code_of(sys.stdout.flush) or exit_code)


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
