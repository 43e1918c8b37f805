"""`--index FOLDER` or `--index URL`: a folder to read, or to change, whichever it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.distributed.places.bucket import BucketPlace
    from indexer.distributed.places.folder import FolderPlace
    from kalm_cache.generations.remote.copies import RemoteCopy
    from kalm_cache.settings import Settings


def remote_copy(index: str, settings: Settings | None = None) -> RemoteCopy | None:
    """The local copies of a remote index; `None` for a folder.

    Raises:
        UsageError: the URL cannot be one of an index.
        StoreError: the settings' `cache_folder` is on a network file system.
    """
    from kalm_cache.object_store.location import is_remote, parse_location

    if not is_remote(index):
        return None
    from kalm_cache.generations.remote.copies import CopyCache, RemoteCopy
    from kalm_cache.settings import load_settings

    settings = settings or load_settings()
    home = Path(settings.cache_folder).expanduser() if settings.cache_folder else _default_folder()
    return RemoteCopy(parse_location(index), CopyCache(home, int(settings.cache_gib * 2**30)))


def place_of(index: str, settings: Settings | None = None) -> FolderPlace | BucketPlace:
    """Where an index that is built in partitions is. Errors as of `remote_copy`."""
    from indexer.distributed.places.bucket import BucketPlace
    from indexer.distributed.places.folder import FolderPlace

    remote = remote_copy(index, settings)
    return FolderPlace(Path(index).absolute()) if remote is None else BucketPlace(remote)


@contextmanager
def index_to_read(index: str, settings: Settings | None = None) -> Iterator[Path]:
    """The folder, or a local copy of what is live at the URL now. Errors as `RemoteCopy.refresh`."""
    remote = remote_copy(index, settings)
    if remote is None:
        yield Path(index)
    else:
        remote.refresh()
        yield remote.reading


@contextmanager
def index_to_change(index: str, settings: Settings | None = None, *, create: bool = False) -> Iterator[Path]:
    """The folder, or a local copy that is pushed at the end of the block. Errors as `RemoteCopy.changing`.

    `create`: there need not be an index yet.
    """
    remote = remote_copy(index, settings)
    if remote is None:
        yield Path(index)
    else:
        with remote.changing(create=create) as folder:
            yield folder


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kalm-cache"
