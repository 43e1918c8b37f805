"""What a command shows: exit codes, logs on stderr, data on stdout."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from kalm_cache.cli.failures import report_failure
from kalm_cache.process.stderr_log import StderrHandler

if TYPE_CHECKING:
    from rich.console import Console

EXIT_PARTIAL = 3
LEAST_WIDTH = 60


def start_logging() -> None:
    """Log lines of our packages on stderr. Libraries keep Python's default: their warnings alone."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for package in ("kalm_cache", "indexer", "query_service"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]


@contextmanager
def exit_codes(resumable: bool = False) -> Iterator[None]:
    """Turn what ends a command early into one line on stderr and its exit code; `resumable` as in `report_failure`."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as exc:
        exit_code = report_failure(exc, resumable)
        if exit_code is None:
            raise
        raise typer.Exit(exit_code) from exc


def print_json(data: Any) -> None:
    """One JSON document on stdout; where its encoding does not take every character, in ASCII."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(data, ensure_ascii=not is_unicode, indent=2) + "\n")


def stdout_console() -> Console:
    """Where tables and lines for people go: at least so wide that there is room for what they say."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, LEAST_WIDTH)
    return console


def print_report(report: Any, in_words: str, as_json: bool) -> None:
    """A dataclass on stdout: in words, or as JSON."""
    if as_json:
        print_json(asdict(report))
    else:
        stdout_console().print(in_words, soft_wrap=True, markup=False)


def human_bytes(count: float) -> str:
    """1536 -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
