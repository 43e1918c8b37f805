"""kalm-cache: rerank with a KaLM cross-attention reranker at the cost of its decoder alone.

The public names load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kalm_cache.client import AsyncClient, Client
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.reranker import KaLMReranker
    from kalm_cache.storage.text_cache.text_cache import TextCache, TextCacheOptions

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "KaLMReranker", "PassageIndex", "TextCache", "TextCacheOptions", "__version__"]

_HOMES = {
    "AsyncClient": "kalm_cache.client",
    "Client": "kalm_cache.client",
    "KaLMReranker": "kalm_cache.reranker",
    "PassageIndex": "kalm_cache.index.passage_index",
    "TextCache": "kalm_cache.storage.text_cache.text_cache",
    "TextCacheOptions": "kalm_cache.storage.text_cache.text_cache",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
