"""A time budget -> how many candidates at which pooling ratio. Lengths are known, so the cost is predictable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kalm_cache.model.prompts import PromptTokens
from kalm_cache.scoring.cached_passages import LookUp
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.prefix_cache import CachedPrefix
from query_service.answering.context import BudgetPlan
from query_service.engine.cost import state_weight
from query_service.engine.request_context import RequestContext

COARSER = (1, 2, 4)  # times the ratio asked for: more would cost more quality than the candidates that it saves
COARSEST_CHUNK_SIZE = 32  # KaLM-Reranker-V1 was trained up to it
AFTER_DECODING_MS = 3.0  # texts are read and the answer is written


def fit(
    tokens: Sequence[int], chunk_size: int, budget_ms: float, cost_ms: Callable[[int, int], float], *, coarsest: int
) -> BudgetPlan:
    """The most that fits into a budget: all at the ratio asked for, else all at a coarser one, else fewer candidates.

    Fewer candidates keep the ratio that was asked for: prompt tokens, which no ratio saves, are most of a pair's cost.
    At least one candidate remains.

    Args:
        tokens: passage tokens of the candidates, best first.
        chunk_size: what was asked for.
        budget_ms: time left for decoding.
        cost_ms: (candidates, pooled states of them all) -> predicted milliseconds.
        coarsest: no coarser ratio than this.
    """

    def predicted(count: int, at: int) -> float:
        return cost_ms(count, sum(-(-length // at) for length in tokens[:count]))

    count = len(tokens)
    for at in (chunk_size * step for step in COARSER):
        if at <= max(coarsest, chunk_size) and predicted(count, at) <= budget_ms:
            return BudgetPlan(count, at, predicted(count, at), at != chunk_size)
    low, high = min(count, 1), count  # predicted cost rises with the count: look for the last that fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicted(middle, chunk_size) <= budget_ms else (low, middle - 1)
    return BudgetPlan(low, chunk_size, predicted(low, chunk_size), True)


def shortened(lookup: LookUp, plan: BudgetPlan) -> LookUp:
    """The part of a look-up that a plan allows: its first candidates, their pooled states averaged to its ratio."""
    readable = [i for i, doc_id in enumerate(lookup.ids) if doc_id in lookup.hits or doc_id in lookup.to_prefill]
    ids = lookup.ids[: readable[plan.k - 1] + 1] if readable else []
    wanted = set(ids)
    hits = {doc_id: passage for doc_id, passage in lookup.hits.items() if doc_id in wanted}
    to_prefill = {doc_id: passage for doc_id, passage in lookup.to_prefill.items() if doc_id in wanted}
    if plan.chunk_size != lookup.chunk_size:
        hits = _coarser(hits, lookup.chunk_size, plan.chunk_size)
    return replace(lookup, ids=ids, chunk_size=plan.chunk_size, hits=hits, to_prefill=to_prefill)


@dataclass(slots=True)
class TimeBudget:
    """A request's time for its whole answer; `plan` is made once the lengths of its candidates are known."""

    context: RequestContext
    budget_ms: float
    plan: BudgetPlan | None = None

    def shorten(self, prompt: PromptTokens, lookup: LookUp) -> LookUp:
        """Shorten a look-up so that decoding it fits into the budget, behind what already waits for the decoder."""
        engine = self.context.engine
        passages = {**lookup.hits, **lookup.to_prefill}
        under_prefix = any(isinstance(passage, CachedPrefix) for passage in passages.values()) or lookup.to_prefill
        shared = len(lookup.prefix) if under_prefix else self.context.index.stored.shared_tokens(prompt)
        prompt_tokens = len(prompt.ids) - shared
        weight = 0.0 if under_prefix else state_weight(self.context.model.query_side)
        self.plan = fit(
            [passages[doc_id].tokens for doc_id in lookup.ids if doc_id in passages],
            lookup.chunk_size,
            self.budget_ms - self.context.elapsed_ms - engine.backlog_ms - AFTER_DECODING_MS,
            lambda count, pooled: engine.cost.ms(count * prompt_tokens + weight * pooled),
            coarsest=lookup.chunk_size if under_prefix else COARSEST_CHUNK_SIZE,
        )
        return shortened(lookup, self.plan) if self.plan.reduced else lookup


def _coarser(
    hits: Mapping[str, PooledPassage | CachedPrefix], before: int, chunk_size: int
) -> dict[str, PooledPassage | CachedPrefix]:
    passages = [passage for passage in hits.values() if isinstance(passage, PooledPassage)]
    states = mean_pool(
        torch.cat([passage.states for passage in passages]),
        [passage.tokens for passage in passages],
        chunk_size,
        stored_chunk_size=before,
    )
    coarse = (replace(passage, states=pooled) for passage, pooled in zip(passages, states, strict=True))
    return dict(zip(hits, coarse, strict=True))
