"""`KaLMRanker`: a Haystack ranker that reranks stored passages by their ids, or texts by a model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, id_of, with_fields
from kalm_cache.adapters.scorer import Backend, Scorer
from kalm_cache.arguments import check_texts
from kalm_cache.client import Client
from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.passage import OnMissing

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
except ModuleNotFoundError as exc:
    raise MissingExtraError("haystack-ai", "haystack") from exc


@component
class KaLMRanker:
    """Keeps the `top_k` most relevant documents, best first, with P(yes) as their score.

    Pipelines can be saved where the backend is named by `base_url`, `index` or `model`; one that is handed over as an
    object cannot be written to a file. Haystack loads them with `allowed_modules=["kalm_cache.adapters.haystack"]`.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        base_url: str | None = None,
        api_key: Secret | None = Secret.from_env_var("KALM_CACHE_API_KEY", strict=False),  # noqa: B008
        index: str | None = None,
        model: str | None = None,
        cache: Any = None,
        cache_gib: float | None = None,
        top_k: int | None = 10,
        min_score: float | None = None,
        id_field: str | None = None,
        on_missing: OnMissing = "error",
        instruction: str | None = None,
        chunk_size: int | None = None,
        meta_fields_to_embed: Sequence[str] | None = None,
    ) -> None:
        """Name a backend, which is opened by `warm_up` or the first run, or hand one over.

        Args:
            backend: `Client`, `AsyncClient` (`run_async` only), `PassageIndex` or `KaLMReranker`.
            base_url: in its place, the address of a service.
            api_key: the service's key.
            index: in its place, the folder of an index. With `model`, texts that it does not hold can be encoded.
            model: in its place, a model that encodes all documents.
            cache: where the pooled states of such a model are kept: a folder, `True` for the platform's own, or an
                open `TextCache`.
            cache_gib: of the cache's file at most; `None` = 4.
            top_k: how many documents are kept, 1 or more; `None` = all.
            min_score: documents with a lower P(yes) are left out; `None` = none are.
            id_field: the meta field with a document's id; `None` = `id`, then `_id`, then `Document.id`.
            on_missing: what becomes of documents that are not stored: `error`, `skip`, or `encode` their text.
            instruction: what queries ask for; `None` = the backend's own.
            chunk_size: pooling ratio; `None` = the backend's own.
            meta_fields_to_embed: meta fields that are part of the passage beside `content`, such as `title`, where it
                is encoded; the passage template of the backend puts them together.
        """
        named = [name for name, value in (("base_url", base_url), ("index", index), ("model", model)) if value]
        if (backend is None) == (not named) or ("base_url" in named and len(named) > 1):
            got = f"{' and '.join(named) or 'none'}{' beside a backend' if backend is not None else ''}"
            raise UsageError(f"give a backend, base_url, index or model; got {got}")
        self.backend, self.base_url, self.api_key, self.index, self.model = backend, base_url, api_key, index, model
        if not model and (cache or cache_gib is not None):
            raise UsageError("cache is for a model that is named; a backend has its own: KaLMReranker(…, cache=…)")
        self.cache, self.cache_gib = cache, cache_gib
        _check(top_k)
        self.top_k, self.min_score, self.id_field = top_k, min_score, id_field
        self.on_missing, self.instruction, self.chunk_size = on_missing, instruction, chunk_size
        self.meta_fields_to_embed = check_texts(
            () if meta_fields_to_embed is None else meta_fields_to_embed, "meta_fields_to_embed"
        )
        self._opened: tuple[Any, Any] | None = None if backend is None else (backend, None)
        self._stack = ExitStack()

    def warm_up(self) -> None:
        """Open the backend that is named."""
        if self._opened is not None:
            return
        if self.base_url:
            key = self.api_key.resolve_value() if self.api_key else None
            self._opened = self._stack.enter_context(Client(self.base_url, api_key=key or "")), None
            return
        from kalm_cache import KaLMReranker, PassageIndex

        reranker = None
        if self.model:
            reranker = KaLMReranker(self.model, cache=self.cache, cache_gib=self.cache_gib)
            self._stack.callback(reranker.close)
        self._opened = (
            (self._stack.enter_context(PassageIndex.open(self.index)), reranker) if self.index else (reranker, None)
        )

    def close(self) -> None:
        """Close what `warm_up` opened."""
        self._stack.close()
        self._opened = None if self.backend is None else self._opened

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """The best documents for a query, best first, as `{"documents": […]}`; of those with one id, one.

        Raises:
            UsageError: `top_k` is below 1.
        """
        documents = _distinct(documents, top_k)
        return self._kept(documents, self._scorer().score(query, self._candidates(documents)), top_k)

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`, without holding up the event loop."""
        documents = _distinct(documents, top_k)
        return self._kept(documents, await self._scorer().ascore(query, self._candidates(documents)), top_k)

    def to_dict(self) -> dict[str, Any]:
        """The component as data. Raises `UsageError` where its backend was handed over as an object."""
        if self.backend is not None:
            raise UsageError("a backend that is an object cannot be saved; name it by base_url, index or model")
        if not isinstance(self.cache, str | os.PathLike | bool | None):
            raise UsageError("an open cache cannot be saved; name its folder")
        return default_to_dict(
            self,
            base_url=self.base_url,
            api_key=self.api_key.to_dict() if self.api_key else None,
            index=self.index,
            model=self.model,
            cache=str(self.cache) if isinstance(self.cache, os.PathLike) else self.cache,
            cache_gib=self.cache_gib,
            top_k=self.top_k,
            min_score=self.min_score,
            id_field=self.id_field,
            on_missing=self.on_missing,
            instruction=self.instruction,
            chunk_size=self.chunk_size,
            meta_fields_to_embed=self.meta_fields_to_embed,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> KaLMRanker:
        """The component that `to_dict` described."""
        key = data["init_parameters"].get("api_key")
        if isinstance(key, dict):
            data["init_parameters"]["api_key"] = Secret.from_dict(key)
        return default_from_dict(cls, data)

    def _scorer(self) -> Scorer:
        self.warm_up()
        assert self._opened is not None
        backend, reranker = self._opened
        return Scorer(backend, reranker, self.on_missing, self.instruction, self.chunk_size)

    def _candidates(self, documents: Sequence[Document]) -> list[Candidate]:
        return [
            Candidate(
                id_of(document.meta, document.id, self.id_field),
                with_fields(document.content or "", document.meta, self.meta_fields_to_embed),
            )
            for document in documents
        ]

    def _kept(
        self, documents: Sequence[Document], ranking: Sequence[ScoredCandidate], top_k: int | None
    ) -> dict[str, list[Document]]:
        limit = self.top_k if top_k is None else top_k
        kept = [scored for scored in ranking if self.min_score is None or scored.score >= self.min_score][:limit]
        return {"documents": [replace(documents[scored.index], score=scored.score) for scored in kept]}


def _distinct(documents: Sequence[Document], top_k: int | None) -> list[Document]:
    """Of documents with one id that which came with the highest score, at the first one's place. Checks `top_k`."""
    _check(top_k)
    best: dict[str, Document] = {}
    for document in documents:
        if document.id not in best or _score(document) > _score(best[document.id]):
            best[document.id] = document
    return list(best.values())


def _score(document: Document) -> float:
    return -math.inf if document.score is None else document.score


def _check(top_k: int | None) -> None:
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be > 0, but got {top_k}")
