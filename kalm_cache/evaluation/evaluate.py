"""An index and judged queries → how good its first stage and its reranked answers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection
from kalm_cache.evaluation.collections.trec import ids_of
from kalm_cache.evaluation.measures.metrics import measure
from kalm_cache.evaluation.points import Point
from kalm_cache.evaluation.reports.report import EvaluationReport, FirstStageQuality, RerankedQuality
from kalm_cache.evaluation.study import Plan, Study, sample_queries, study
from kalm_cache.evaluation.systems import System
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

__all__ = ["evaluate", "reports_of", "sample_queries"]


def evaluate(
    index: PassageIndex,
    task: BeirTask,
    *,
    k: int = 100,
    first_stage: Mode | None = None,
    chunk_sizes: Sequence[int] | None = None,
    first_stage_weights: Sequence[float] = (),
    max_queries: int | None = None,
    instruction: str = DEFAULT_INSTRUCTION,
    system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[EvaluationReport]:
    """Answer the task's queries and measure the answers: one report for each chunk size, over the same candidates.

    A passage with the query's own id stays in the answer (BEIR's script drops it, for the sake of ArguAna and Quora).

    Args:
        index: holds the task's corpus.
        task: queries and judgments.
        k: candidates that are reranked.
        first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
        chunk_sizes: pooling ratios: the stored one or multiples of it; `None` = the index's default alone.
        first_stage_weights: every chunk size is also reported with the first stage's score added, at each weight.
        max_queries: ask a sample of so many queries, the same in every run; `None` = all.
        instruction: what the queries ask for.
        system_instruction: the prompt's first line.
        on_progress: called after every reranked query with the number done, and that of all, over all chunk sizes.

    Raises:
        UsageError: an option does not fit, or the index holds none of the relevant passages.
    """
    chunk_sizes = [index.chunk_size] if chunk_sizes is None else list(chunk_sizes)
    plan = Plan(
        points=tuple(Point(chunk_size) for chunk_size in chunk_sizes),
        k=k,
        first_stage=first_stage,
        first_stage_weights=tuple(first_stage_weights),
        max_queries=max_queries,
        instruction=instruction,
        system_instruction=system_instruction,
    )
    return reports_of(study(index, Collection(task, lambda: ()), plan, on_progress=on_progress))


def reports_of(found: Study) -> list[EvaluationReport]:
    """A report for each point of a study, and for each of these blended with the first stage."""
    first = found.candidates
    means = measure(found.task.qrels, ids_of(first.run), ("ndcg@10", "recall@100"))
    quality = FirstStageQuality(first.name, means["ndcg@10"], means["recall@100"])
    return [_report(found, quality, first, point) for point in (*found.of_kind("reranker"), *found.of_kind("blended"))]


def _report(found: Study, quality: FirstStageQuality, first: System, point: System) -> EvaluationReport:
    means = measure(found.task.qrels, ids_of(point.run), ("ndcg@10", "mrr@10", "map@100"))
    facts, seconds = found.facts, first.cost.seconds + point.cost.seconds
    return EvaluationReport(
        dataset=found.task.name,
        split=found.task.split,
        queries=len(found.task.queries),
        first_stage=quality,
        reranked=RerankedQuality(means["ndcg@10"], means["mrr@10"], means["map@100"]),
        chunk_size=point.cost.chunk_size or 0,
        codec=point.cost.codec or "",
        first_stage_weight=point.cost.first_stage_weight,
        bytes_per_passage=facts.bytes_per_passage,
        states_bytes_per_passage=round(point.cost.bytes_per_passage or 0, 1),
        k=found.k,
        stored_chunk_size=facts.chunk_size,
        sampled_from=found.sampled_from,
        missing_passages=facts.missing_passages,
        seconds=round(seconds, 3),
        ms_per_query=round(1000 * seconds / len(found.task.queries), 2),
        model=facts.model,
        generation=facts.generation,
    )
