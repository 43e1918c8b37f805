"""A model that a component is given by its name: loaded in this process at its first use. Knows no library."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import UsageError

if TYPE_CHECKING:
    from kalm_cache.reranker import KaLMReranker

_loading = Lock()  # of the module: what holds a model can be copied and pickled


@dataclass(slots=True)
class NamedModel:
    """A reranker by the arguments that make it, once it is asked for. `options`: of `KaLMReranker`."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    _reranker: KaLMReranker | None = None

    def open(self) -> KaLMReranker:
        """The reranker, loaded by the first call. Raises as its constructor."""
        from kalm_cache.reranker import KaLMReranker

        with _loading:
            if self._reranker is None:
                self._reranker = KaLMReranker(self.name, **self.options)
            return self._reranker

    def close(self) -> None:
        """Write what waits for the cache. The next use loads the model again."""
        with _loading:
            reranker, self._reranker = self._reranker, None
        if reranker is not None:
            reranker.close()


def named_model(backend: Any, model: str | None, cache: Any, cache_gib: float | None) -> NamedModel | None:
    """The model that stands in a backend's place; `None` where there is a backend.

    Args:
        backend: a component's.
        model: the name in its place: alias, folder or Hugging Face id.
        cache: of `KaLMReranker`, for `model` alone.
        cache_gib: likewise.

    Raises:
        UsageError: neither or both of backend and model, or a cache for a backend.
    """
    if (backend is None) == (not model):
        raise UsageError(f"give a backend or a model's name; got {'both' if model else 'none'}")
    if model:
        return NamedModel(model, {"cache": cache, "cache_gib": cache_gib})
    if cache or cache_gib is not None:
        raise UsageError("cache is for a model that is named; a backend has its own: KaLMReranker(…, cache=…)")
    return None
