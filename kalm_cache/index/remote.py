"""Settings and a URL -> the local copies of a remote index."""

from __future__ import annotations

import os
from pathlib import Path

from kalm_cache.generations.remote.copies import CopyCache, RemoteCopy
from kalm_cache.object_store.location import is_remote, parse_location
from kalm_cache.settings import Settings, load_settings


def remote_copy(
    index: str, settings: Settings | None = None, shards: tuple[int, ...] | None = None
) -> RemoteCopy | None:
    """The local copies of a remote index, of which readers want all shards or some; `None` for a folder.

    Raises:
        UsageError: the URL cannot be one of an index.
        StoreError: the settings' `cache_folder` is on a network file system.
    """
    if not is_remote(index):
        return None
    settings = settings or load_settings()
    home = Path(settings.cache_folder).expanduser() if settings.cache_folder else _default_folder()
    return RemoteCopy(parse_location(index), CopyCache(home, int(settings.cache_gib * 2**30)), shards=shards)


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kalm-cache"
