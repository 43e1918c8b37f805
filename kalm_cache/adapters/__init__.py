"""Rerankers for other libraries' pipelines, over an index, a service or a reranker. Each loads on first use.

`candidates.py` decides what is scored by id and what by text, `scorer.py` gets the scores from a backend; the other
modules speak each library's types.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kalm_cache.adapters.cross_encoder import KaLMCrossEncoder
    from kalm_cache.adapters.haystack import KaLMRanker
    from kalm_cache.adapters.langchain import KaLMCompressor
    from kalm_cache.adapters.llama_index import KaLMPostprocessor

__all__ = ["KaLMCompressor", "KaLMCrossEncoder", "KaLMPostprocessor", "KaLMRanker"]

_HOMES = {
    "KaLMCompressor": "langchain",
    "KaLMCrossEncoder": "cross_encoder",
    "KaLMPostprocessor": "llama_index",
    "KaLMRanker": "haystack",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
