"""A time budget -> how many candidates at which pooling ratio. Lengths are known, so the cost is predictable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from kalm_cache.scoring.cached_passages import LookUp
from kalm_cache.scoring.pooling import PooledPassage, mean_pool
from kalm_cache.scoring.prefix_cache import CachedPrefix

COARSER = (1, 2, 4)  # times the ratio asked for: more would cost more quality than the candidates that it saves


@dataclass(frozen=True, slots=True)
class Plan:
    """The first `k` candidates at `chunk_size`; `reduced` = less than was asked for."""

    k: int
    chunk_size: int
    predicted_ms: float
    reduced: bool


def fit(
    tokens: Sequence[int], chunk_size: int, budget_ms: float, cost_ms: Callable[[int, int], float], *, coarsest: int
) -> Plan:
    """The most that fits into a budget: all at the ratio asked for, else all at a coarser one, else fewer candidates.

    Fewer candidates keep the ratio that was asked for: prompt tokens, which no ratio saves, are most of a pair's cost.
    One candidate is always kept.

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
            return Plan(count, at, predicted(count, at), at != chunk_size)
    low, high = min(count, 1), count  # predicted cost rises with the count: look for the last that fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if predicted(middle, chunk_size) <= budget_ms else (low, middle - 1)
    return Plan(low, chunk_size, predicted(low, chunk_size), True)


def reduced(found: LookUp, plan: Plan) -> LookUp:
    """What a plan leaves of a look-up: its first candidates, their pooled states averaged further where it says so."""
    whole = [i for i, doc_id in enumerate(found.ids) if doc_id in found.hits or doc_id in found.to_prefill]
    ids = found.ids[: whole[plan.k - 1] + 1] if whole else []
    wanted = set(ids)
    hits = {doc_id: passage for doc_id, passage in found.hits.items() if doc_id in wanted}
    to_prefill = {doc_id: passage for doc_id, passage in found.to_prefill.items() if doc_id in wanted}
    if plan.chunk_size != found.chunk_size:
        hits = _coarser(hits, found.chunk_size, plan.chunk_size)
    return replace(found, ids=ids, chunk_size=plan.chunk_size, hits=hits, to_prefill=to_prefill)


def _coarser(
    hits: Mapping[str, PooledPassage | CachedPrefix], before: int, chunk_size: int
) -> dict[str, PooledPassage | CachedPrefix]:
    passages = [passage for passage in hits.values() if isinstance(passage, PooledPassage)]
    states = mean_pool(
        torch.cat([one.states for one in passages]),
        [one.tokens for one in passages],
        chunk_size,
        stored_chunk_size=before,
    )
    coarse = (replace(passage, states=one) for passage, one in zip(passages, states, strict=True))
    return dict(zip(hits, coarse, strict=True))
