"""One point of a collection's result as a flat report: what `kalm-cache eval` prints. Measures nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kalm_cache.evaluation.reports.results import CollectionResult, SystemResult


@dataclass(frozen=True, slots=True)
class FirstStageQuality:
    """The first stage alone, over its first 100 candidates (or `k`, where that is more); `mode` may be `given`."""

    mode: str
    ndcg_at_10: float
    recall_at_100: float

    def to_json(self) -> dict[str, Any]:
        """Fields under the names of their measures, to 4 decimals."""
        return {"mode": self.mode, "ndcg@10": round(self.ndcg_at_10, 4), "recall@100": round(self.recall_at_100, 4)}


@dataclass(frozen=True, slots=True)
class RerankedQuality:
    """The first stage's first `k` candidates in the reranker's order."""

    ndcg_at_10: float
    mrr_at_10: float
    map_at_100: float

    def to_json(self) -> dict[str, Any]:
        """Fields under the names of their measures, to 4 decimals."""
        means = {"ndcg@10": self.ndcg_at_10, "mrr@10": self.mrr_at_10, "map@100": self.map_at_100}
        return {name: round(mean, 4) for name, mean in means.items()}


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One index on one collection at one chunk size, and with one weight of the first stage (0: the reranker alone).

    `bytes_per_passage` are those of the generation's files, at `stored_chunk_size`; `states_bytes_per_passage` of the
    file that the states were read from. `sampled_from` counts the split's queries, of which `queries` were asked.
    `missing_passages` are relevant ones that the index does not hold: they count as not found.
    `shared_prefix`: `mean` where prompts had one, and `tau` is Kendall's between its margins and those without.
    `seconds` and `ms_per_query` cover first stage and reranking, one query at a time.
    """

    dataset: str
    split: str
    queries: int
    first_stage: FirstStageQuality
    reranked: RerankedQuality
    chunk_size: int
    codec: str
    bytes_per_passage: float
    states_bytes_per_passage: float
    k: int
    first_stage_weight: float
    shared_prefix: str | None
    tau: float | None
    stored_chunk_size: int
    sampled_from: int
    missing_passages: int
    seconds: float
    ms_per_query: float
    model: str
    generation: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, fields in their order."""
        return asdict(self) | {"first_stage": self.first_stage.to_json(), "reranked": self.reranked.to_json()}


def reports_of(result: CollectionResult) -> list[EvaluationReport]:
    """A report for each point of the reranker, and for each of these interpolated with the first stage."""
    return [_report(result, point) for kind in ("reranker", "interpolated") for point in result.of_kind(kind)]


def _report(result: CollectionResult, point: SystemResult) -> EvaluationReport:
    facts, cost, means = result.facts, point.cost, point.means
    first = next(system for system in result.systems if system.name == facts.candidates)
    seconds = first.cost.seconds + cost.seconds
    return EvaluationReport(
        dataset=result.name,
        split=result.split,
        queries=result.queries,
        first_stage=FirstStageQuality(first.name, first.means["ndcg@10"], first.means["recall@100"]),
        reranked=RerankedQuality(means["ndcg@10"], means["mrr@10"], means["map@100"]),
        chunk_size=cost.chunk_size or 0,
        codec=cost.codec or "",
        first_stage_weight=cost.first_stage_weight,
        shared_prefix=cost.shared_prefix,
        tau=None if point.tau is None else round(point.tau, 4),
        bytes_per_passage=facts.bytes_per_passage,
        states_bytes_per_passage=round(cost.bytes_per_passage or 0, 1),
        k=result.k,
        stored_chunk_size=facts.chunk_size,
        sampled_from=result.sampled_from,
        missing_passages=facts.missing_passages,
        seconds=round(seconds, 3),
        ms_per_query=round(1000 * seconds / result.queries, 2),
        model=facts.model,
        generation=facts.generation,
    )
