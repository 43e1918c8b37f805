"""`--index FOLDER` or `--index URL`: a folder to read, or to change, whichever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kalm_cache.generations.remote.copies import RemoteCopy
    from kalm_cache.settings import Settings


def remote_copy(
    index: str, settings: Settings | None = None, shards: tuple[int, ...] | None = None
) -> RemoteCopy | None:
    """As `kalm_cache.index.remote.remote_copy`, imported where there is a URL."""
    from kalm_cache.object_store.location import is_remote

    if not is_remote(index):
        return None
    from kalm_cache.index.remote import remote_copy as copy_of

    return copy_of(index, settings, shards)


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
