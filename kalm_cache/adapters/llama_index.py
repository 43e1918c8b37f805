"""`KaLMPostprocessor`: a LlamaIndex node postprocessor that reranks stored passages by their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kalm_cache.adapters.candidates import Candidate, ScoredCandidate, id_of
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
        reranker: beside a `PassageIndex`, what encodes texts that it does not hold.
        top_n: how many nodes are kept; `None` = all.
        id_field: the metadata field with a passage's id; `None` = `id`, then `_id`, then the node's own id.
        on_missing: what becomes of nodes that are not stored: `error`, `skip`, or `encode` their text.
        instruction: what queries ask for; `None` = the backend's own.
        chunk_size: pooling ratio; `None` = the backend's own.
        keep_retrieval_score: put the score that a node came with into its metadata, as `retrieval_score`.
    """

    backend: Any
    reranker: Any = None
    top_n: int | None = None
    id_field: str | None = None
    on_missing: OnMissing = "error"
    instruction: str | None = None
    chunk_size: int | None = None
    keep_retrieval_score: bool = False

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
        return Scorer(self.backend, self.reranker, self.on_missing, self.instruction, self.chunk_size)

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
