"""What a command shows: exit codes, logs on stderr, data on stdout."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer
from rich.console import Console

from kalm_cache.errors import KalmCacheError
from kalm_cache.stderr_log import StderrHandler
from kalm_cache.system import describe

EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130


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
    """Turn errors raised on purpose into one line on stderr and their exit code; Ctrl-C into 130."""
    try:
        yield
    except KalmCacheError as exc:
        typer.echo(f"error: {exc}", err=True)
        raise typer.Exit(exc.exit_code) from exc
    except OSError as exc:  # a full disk or a missing permission
        typer.echo(f"error: {describe(exc)}", err=True)
        raise typer.Exit(1) from exc
    except KeyboardInterrupt as exc:
        typer.echo("interrupted" + ("; what is stored is kept: run the same command to go on" * resumable), err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from exc


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def stdout_console() -> Console:
    """Where tables and lines for people go."""
    return Console(highlight=False)


def print_report(report: Any, in_words: str, as_json: bool) -> None:
    """A dataclass on stdout: in words, or as JSON."""
    if as_json:
        print_json(asdict(report))
    else:
        stdout_console().print(in_words, soft_wrap=True)


def human_bytes(count: float) -> str:
    """1536 -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
