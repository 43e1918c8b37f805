"""A reranker for mteb that builds the index of each corpus. Composes the packages, as the command line does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kalm_cache.evaluation.mteb_reranker import MTEBReranker
    from kalm_cache.index.passage_index import PassageIndex
    from kalm_cache.passage import Passage, PassageTemplate


def load_mteb_reranker(
    index_root: str | Path,
    *,
    k: int = 100,
    instruction: str | None = None,
    chunk_size: int | None = None,
    **settings: Any,
) -> MTEBReranker:
    """A model for `mteb.evaluate`, with an index for each corpus under `index_root`, built at its first use.

    Args:
        index_root: folder of the indexes; an index there that fits the settings is used again.
        k: candidates that are reranked where mteb gives none.
        instruction: `None` = the query's, else the task's prompt, else the model's default.
        chunk_size: pooling ratio; `None` = the setting's.
        settings: `kalm_cache.settings.Settings`: `model`, `codec`, `embedder`, `device`, `dtype`, `max_length`, …

    Raises:
        UsageError: a setting that cannot be served.
        MissingExtraError: mteb is not installed.
    """
    from kalm_cache.cli.evaluation.indexes import EvaluationIndexes
    from kalm_cache.evaluation.mteb_reranker import MTEBReranker
    from kalm_cache.settings import load_settings

    loaded = load_settings(chunk_size=chunk_size, **settings)
    indexes = EvaluationIndexes(loaded, [loaded.chunk_size])

    def open_index(name: str, passages: Callable[[PassageTemplate], Iterable[Passage]]) -> PassageIndex:
        return indexes.open(name, passages, Path(index_root) / name)

    return MTEBReranker(open_index, f"kalm-cache/{loaded.model}", k=k, instruction=instruction, chunk_size=chunk_size)
