"""`kalm-cache push` and `pull`: an index folder to an object store, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kalm_cache.cli import options as opt
from kalm_cache.cli.output import exit_codes, human_bytes, print_report

Url = Annotated[str, typer.Argument(metavar="URL", help="s3://BUCKET/PATH, gs://…, az://…, file:///FOLDER.")]


def push(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")],
    url: Url,
    json: opt.AsJson = False,
) -> None:
    """Publish an index folder in an object store: what is not there is uploaded, then it is live, all at once.

    An error where another writer published there since the folder was pulled or pushed.
    """
    from kalm_cache.generations.generation import open_current
    from kalm_cache.generations.remote.push import push as push_index
    from kalm_cache.object_store.location import parse_location
    from kalm_cache.object_store.store import open_store
    from kalm_cache.storage.locks import build_lock

    with exit_codes():
        location = parse_location(url)
        open_current(index)  # before the lock, whose file would make a wrong folder
        with build_lock(index):
            report = push_index(open_store(location, create=True), index)
    in_words = (
        f"generation {report.generation} is live at {report.url}: {report.passages:,} passages; "
        f"{human_bytes(report.moved_bytes)} uploaded of {human_bytes(report.bytes)}, {report.seconds:.1f} s"
    )
    print_report(report, in_words, json)


def pull(
    url: Url,
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index; made if it is not there.")],
    json: opt.AsJson = False,
) -> None:
    """Bring an index folder to what is live in an object store: what it has not is downloaded, and verified.

    The folder can be changed and pushed then. Earlier generations come without their segments.
    """
    from kalm_cache.generations.remote.pull import pull_into
    from kalm_cache.generations.remote.root import require_root
    from kalm_cache.object_store.location import parse_location
    from kalm_cache.object_store.store import open_store
    from kalm_cache.storage.durable import disk_errors
    from kalm_cache.storage.locks import build_lock

    with exit_codes():
        store = open_store(parse_location(url))
        require_root(store)  # before the lock makes a folder
        with build_lock(index), disk_errors(index):
            report = pull_into(store, index)
    in_words = (
        f"generation {report.generation} of {report.url} is live in {report.index}: {report.passages:,} passages; "
        f"{human_bytes(report.moved_bytes)} downloaded of {human_bytes(report.bytes)}, {report.seconds:.1f} s"
    )
    print_report(report, in_words, json)
