"""Settings -> an open index, a text cache. A model, codec, chunk size or template that was set must fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.settings import Settings

if TYPE_CHECKING:
    from kalm_cache.storage.text_cache.text_cache import TextCache


def open_index(folder: Path, settings: Settings, reuse_from: PassageIndex | None = None) -> PassageIndex:
    """Open the live generation of `folder` as the settings say; `reuse_from` and errors as in `PassageIndex.open`."""
    given = settings.model_fields_set
    return PassageIndex.open(
        folder,
        device=settings.device,
        dtype=settings.dtype,
        query_max_length=settings.query_max_length,
        model=settings.model if "model" in given else None,
        codec=settings.codec if "codec" in given else None,
        chunk_size=settings.chunk_size if "chunk_size" in given else None,
        passage_template=settings.passage_template if "passage_template" in given else None,
        prefix_cache_gib=settings.prefix_cache_gib,
        prefix_cache_dtype=settings.prefix_cache_dtype,
        shared_prefix=settings.shared_prefix,
        shards=settings.served_shards,
        reuse_from=reuse_from,
    )


def open_text_cache(settings: Settings) -> TextCache | None:
    """The text cache of the settings, if there is one. Its file opens on first use.

    Raises:
        StoreError: its folder is on a network file system.
    """
    if not settings.text_cache:
        return None
    from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

    options = TextCacheOptions(
        Path(settings.text_cache).expanduser(),
        int(settings.text_cache_gib * 2**30),
        ttl_seconds=settings.text_cache_ttl_seconds,
        secret=settings.text_cache_secret.get_secret_value().encode(),
        any_file_system=settings.text_cache_any_file_system,
        gives_way=True,
    )
    return TextCache(options)
