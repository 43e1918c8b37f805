"""`KaLMCompressor`: a LangChain document compressor that reranks stored passages by their ids, or texts by a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, PrivateAttr

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, id_of, with_fields
from kalm_cache.adapters.named_model import NamedModel, named_model
from kalm_cache.adapters.scorer import Scorer
from kalm_cache.arguments import check_limit
from kalm_cache.errors import MissingExtraError
from kalm_cache.passage import OnMissing

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
except ModuleNotFoundError as exc:
    raise MissingExtraError("langchain-core", "langchain") from exc


class KaLMCompressor(BaseDocumentCompressor):
    """Keeps the `top_n` most relevant documents, best first, with `relevance_score` = P(yes) in their metadata.

    Attributes:
        backend: `Client`, `AsyncClient` (asynchronous methods only), `PassageIndex` or `KaLMReranker`.
        model: in its place, a model's alias, folder or Hugging Face id: it is loaded in this process at the first use,
            and encodes all documents.
        cache: where the pooled states of such a model are kept: a folder, `True` for the platform's own, or an open
            `TextCache`.
        cache_gib: of the cache's file at most; `None` = 4.
        reranker: beside a `PassageIndex`, what encodes texts that it does not hold.
        top_n: how many documents are kept; `None` = all.
        min_score: documents with a lower P(yes) are left out; `None` = none are.
        id_field: the metadata field with a document's id; `None` = `id`, then `_id`, then `Document.id`.
        on_missing: what becomes of documents that are not stored: `error`, `skip`, or `encode` their text.
        instruction: what queries ask for; `None` = the backend's own.
        chunk_size: pooling ratio; `None` = the backend's own.
        text_fields: metadata fields that are part of the passage beside `page_content`, such as `title`, where it is
            encoded; the passage template of the index puts them together.
    """

    backend: Any = None
    model: str | None = None
    cache: Any = None
    cache_gib: float | None = None
    reranker: Any = None
    top_n: int | None = None
    min_score: float | None = None
    id_field: str | None = None
    on_missing: OnMissing = "error"
    instruction: str | None = None
    chunk_size: int | None = None
    text_fields: Sequence[str] = ()

    _named: NamedModel | None = PrivateAttr(None)

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    def __init__(self, **fields: Any) -> None:
        """Set the attributes. Raises `UsageError` for a `top_n` below 0, and without a backend or a model."""
        super().__init__(**fields)
        self._named = named_model(self.backend, self.model, self.cache, self.cache_gib)
        check_limit(self.top_n, "top_n", least=0)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The best documents for a query, best first, as copies."""
        return self._kept(documents, self._scorer().score(query, self._candidates(documents)))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """As `compress_documents`, without holding up the event loop."""
        return self._kept(documents, await self._scorer().ascore(query, self._candidates(documents)))

    def close(self) -> None:
        """Write what waits for the cache of a model that was named."""
        if self._named is not None:
            self._named.close()

    def _scorer(self) -> Scorer:
        check_limit(self.top_n, "top_n", least=0)  # it may have been set since
        backend = self.backend if self._named is None else self._named.open()
        return Scorer(backend, self.reranker, self.on_missing, self.instruction, self.chunk_size)

    def _candidates(self, documents: Sequence[Document]) -> list[Candidate]:
        return [
            Candidate(
                id_of(document.metadata, document.id, self.id_field),
                with_fields(document.page_content, document.metadata, self.text_fields),
            )
            for document in documents
        ]

    def _kept(self, documents: Sequence[Document], ranking: Sequence[ScoredCandidate]) -> list[Document]:
        kept = [scored for scored in ranking if self.min_score is None or scored.score >= self.min_score]
        return [_with_score(documents[scored.index], scored) for scored in kept[: self.top_n]]


def _with_score(document: Document, scored: ScoredCandidate) -> Document:
    metadata = {**document.metadata, "relevance_score": scored.score, "relevance_margin": scored.margin}
    return document.model_copy(update={"metadata": metadata})
