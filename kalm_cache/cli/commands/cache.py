"""`kalm-cache cache stats`, `verify`, `trim` and `clear`: upkeep of a text cache, also while it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, human_bytes, print_json, print_report, stdout_console

if TYPE_CHECKING:
    from kalm_cache.storage.text_cache.upkeep import Trimmed

group = typer.Typer(help="Look after a text cache.", no_args_is_help=True)
CacheFolder = Annotated[str, typer.Option("--text-cache", help="Folder of the text cache.")]


def stats(text_cache: CacheFolder, json: opt.AsJson = False) -> None:
    """What a text cache holds, and what it takes on disk."""
    with exit_codes():
        from kalm_cache.storage.text_cache import upkeep

        found = upkeep.stats(_named(text_cache))
    if json:
        print_json(dataclasses.asdict(found))
        return
    oldest = "" if found.oldest is None else f", the oldest of {datetime.fromtimestamp(found.oldest, UTC):%F %T} UTC"
    console = stdout_console()
    console.print(f"{found.entries:,} passages in {found.blocks:,} blocks{oldest}", soft_wrap=True)
    most = "" if found.max_bytes is None else f" and may have {human_bytes(found.max_bytes)}"
    used, file = human_bytes(found.used_bytes), human_bytes(found.file_bytes)
    console.print(f"{used} used, the file has {file}{most}", soft_wrap=True)
    for namespace in found.namespaces:
        console.print("  ".join(f"{name} {str(value)[:20]}" for name, value in namespace.items()), soft_wrap=True)


def verify(text_cache: CacheFolder, json: opt.AsJson = False) -> None:
    """Check every record; exit code 1 when one is damaged. None of these is ever served: a damaged record is a miss."""
    with exit_codes():
        from kalm_cache.storage.text_cache import upkeep

        verified = upkeep.verify(_named(text_cache))
    lines = [*verified.problems, f"{verified.records:,} records, {len(verified.problems):,} problems"]
    print_report(verified, "\n".join(lines), json)
    if verified.problems:
        raise typer.Exit(1)


def trim(
    text_cache: CacheFolder,
    gib: Annotated[float, typer.Option("--gib", min=0.0, help="What the file may take afterwards, GiB.")],
    json: opt.AsJson = False,
) -> None:
    """Make the file smaller: what was not used for longest leaves first."""
    with exit_codes():
        from kalm_cache.storage.text_cache import upkeep

        trimmed = upkeep.trim(_named(text_cache), int(gib * 2**30))
    _print_trimmed(trimmed, json)


def clear(text_cache: CacheFolder, json: opt.AsJson = False) -> None:
    """Remove every record, also from a file that is damaged."""
    with exit_codes():
        from kalm_cache.storage.text_cache import upkeep

        cleared = upkeep.clear(_named(text_cache))
    _print_trimmed(cleared, json)


def _named(text_cache: str) -> Path:
    opt.require_named(text_cache)
    return Path(text_cache).expanduser()


def _print_trimmed(trimmed: Trimmed, json: bool) -> None:
    in_words = (
        f"{'all' if trimmed.removed is None else f'{trimmed.removed:,}'} passages removed; "
        f"the file had {human_bytes(trimmed.bytes_before)} and has {human_bytes(trimmed.bytes_after)}"
    )
    print_report(trimmed, in_words, json)


COMMANDS: tuple[Callable[..., None], ...] = (stats, verify, trim, clear)
