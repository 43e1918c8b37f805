"""The text cache that an argument names: a folder, the platform's own, or one that is open. Knows nothing of models."""

from __future__ import annotations

import logging
import os
import sys
from functools import cache as once
from pathlib import Path

from kalm_cache.arguments import check_weight
from kalm_cache.errors import UsageError
from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

CacheLike = TextCache | str | os.PathLike[str] | bool | None
DEFAULT_GIB = 4.0
logger = logging.getLogger(__name__)


def open_named(cache: CacheLike, gib: float | None = None) -> TextCache | None:
    """The cache that the arguments name; one that is open is itself, whatever is asked for.

    Args:
        cache: a folder, `True` for `platform_folder()`, an open cache; `None` and `False`: none.
        gib: of its file; `None` = 4.

    Raises:
        UsageError: `cache` is something else, or its size is below 16 MiB, or given where there is nothing to bound.
        StoreError: the folder is on a network file system.
    """
    if isinstance(cache, TextCache) or cache is None or cache is False:
        if gib is not None:
            raise UsageError(f"cache_gib is {gib}, but cache names no folder: an open cache has its size")
        return cache or None
    if cache is True:
        folder = platform_folder()
        _say(folder)
    elif isinstance(cache, str | os.PathLike) and str(cache):
        folder = Path(cache).expanduser().absolute()
    else:
        raise UsageError(f"cache is {cache!r}; expected a folder, True, or an open TextCache")
    gib = DEFAULT_GIB if gib is None else check_weight(gib, "cache_gib")
    return TextCache(TextCacheOptions(folder, int(gib * (1 << 30))))


def platform_folder() -> Path:
    """Where this user's caches are: `$XDG_CACHE_HOME`, else `~/.cache`, on macOS `~/Library/Caches`; kalm-cache/texts.

    Raises:
        UsageError: there is no home folder.
    """
    try:
        usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    except RuntimeError as exc:
        raise UsageError("cache=True finds no home folder; name one: cache='FOLDER'") from exc
    return Path(os.environ.get("XDG_CACHE_HOME") or usual).expanduser().absolute() / "kalm-cache" / "texts"


@once
def _say(folder: Path) -> None:
    logger.info("texts are cached in %s, %g GiB unless cache_gib says otherwise", folder, DEFAULT_GIB)
