"""`KaLMPostprocessor`: a LlamaIndex node postprocessor that reranks stored passages by their ids, or texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import PrivateAttr

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, id_of
from kalm_cache.adapters.named_model import NamedModel, named_model
from kalm_cache.adapters.scorer import Scorer
from kalm_cache.arguments import check_limit
from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.passage import OnMissing

try:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ModuleNotFoundError as exc:
    raise MissingExtraError("llama-index-core", "llama-index") from exc


class KaLMPostprocessor(BaseNodePostprocessor):
    """Keeps the `top_n` most relevant nodes, best first, with P(yes) as their score.

    A node that is not stored is encoded as LlamaIndex's embedders do it: with the metadata that it does not exclude
    (`excluded_embed_metadata_keys`).

    Attributes:
        backend: `Client`, `AsyncClient` (asynchronous methods only), `PassageIndex` or `KaLMReranker`.
        model: in its place, a model's alias, folder or Hugging Face id: it is loaded in this process at the first use,
            and encodes all nodes.
        cache: where the pooled states of such a model are kept: a folder, `True` for the platform's own, or an open
            `TextCache`.
        cache_gib: of the cache's file at most; `None` = 4.
        reranker: beside a `PassageIndex`, what encodes texts that it does not hold.
        top_n: how many nodes are kept; `None` = all.
        id_field: the metadata field with a passage's id; `None` = `id`, then `_id`, then the node's own id.
        on_missing: what becomes of nodes that are not stored: `error`, `skip`, or `encode` their text.
        instruction: what queries ask for; `None` = the backend's own.
        chunk_size: pooling ratio; `None` = the backend's own.
        keep_retrieval_score: put the score that a node came with into its metadata, as `retrieval_score`.
    """

    backend: Any = None
    model: str | None = None
    cache: Any = None
    cache_gib: float | None = None
    reranker: Any = None
    top_n: int | None = None
    id_field: str | None = None
    on_missing: OnMissing = "error"
    instruction: str | None = None
    chunk_size: int | None = None
    keep_retrieval_score: bool = False

    _named: NamedModel | None = PrivateAttr(None)

    def __init__(self, **fields: Any) -> None:
        """Set the attributes. Raises `UsageError` without a backend or a model."""
        super().__init__(**fields)
        self._named = named_model(self.backend, self.model, self.cache, self.cache_gib)

    def close(self) -> None:
        """Write what waits for the cache of a model that was named."""
        if self._named is not None:
            self._named.close()

    @classmethod
    def class_name(cls) -> str:
        """The name of the component in LlamaIndex."""
        return "KaLMPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._kept(nodes, self._scorer().score(_query(query_bundle), self._candidates(nodes)))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._kept(nodes, await self._scorer().ascore(_query(query_bundle), self._candidates(nodes)))

    def _scorer(self) -> Scorer:
        check_limit(self.top_n, "top_n", least=0)
        backend = self.backend if self._named is None else self._named.open()
        return Scorer(backend, self.reranker, self.on_missing, self.instruction, self.chunk_size)

    def _candidates(self, nodes: Sequence[NodeWithScore]) -> list[Candidate]:
        return [
            Candidate(
                id_of(hit.node.metadata, hit.node.node_id, self.id_field), hit.node.get_content(MetadataMode.EMBED)
            )
            for hit in nodes
        ]

    def _kept(self, nodes: Sequence[NodeWithScore], ranking: Sequence[ScoredCandidate]) -> list[NodeWithScore]:
        kept = ranking[: self.top_n]
        if self.keep_retrieval_score:
            for scored in kept:
                nodes[scored.index].node.metadata["retrieval_score"] = nodes[scored.index].score
        return [NodeWithScore(node=nodes[scored.index].node, score=scored.score) for scored in kept]


def _query(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise UsageError("a query is missing: call postprocess_nodes(nodes, query_str=…)")
    return bundle.query_str
