"""An index and judged queries → how good its first stage and its reranked answers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection, drops_own_id
from kalm_cache.evaluation.plan import Plan, sample_queries
from kalm_cache.evaluation.points import points_of
from kalm_cache.evaluation.reports.report import EvaluationReport, reports_of
from kalm_cache.evaluation.reports.results import measured, per_query_of
from kalm_cache.evaluation.study import study
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

__all__ = ["evaluate", "sample_queries"]


def evaluate(
    index: PassageIndex,
    task: BeirTask,
    *,
    k: int = 100,
    first_stage: Mode | None = None,
    chunk_sizes: Sequence[int] | None = None,
    first_stage_weights: Sequence[float] = (),
    shared_prefix: Literal["mean"] | None = None,
    max_queries: int | None = None,
    instruction: str = DEFAULT_INSTRUCTION,
    system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
    drop_own_id: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[EvaluationReport]:
    """Answer the task's queries and measure the answers: one report for each chunk size, over the same candidates.

    Args:
        index: holds the task's corpus.
        task: queries and judgments.
        k: candidates that are reranked.
        first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
        chunk_sizes: pooling ratios: the stored one or multiples of it; `None` = the index's default alone.
        first_stage_weights: every chunk size is also reported with the first stage interpolated, at each weight.
        shared_prefix: every chunk size is also reported with the prefix that prompts share, see `PassageIndex.open`.
        max_queries: ask a sample of so many queries, the same in every run; `None` = all.
        instruction: what the queries ask for.
        system_instruction: the prompt's first line.
        drop_own_id: leave the passage with the query's own id out; `None` = in tasks called as ArguAna and Quora are.
        on_progress: called after every reranked query with the number done, and that of all, over all chunk sizes.

    Raises:
        UsageError: an option does not fit, or the index holds none of the relevant passages.
    """
    plan = Plan(
        points=points_of([index.chunk_size] if chunk_sizes is None else chunk_sizes, [None], shared_prefix),
        k=k,
        first_stage=first_stage,
        first_stage_weights=tuple(first_stage_weights),
        max_queries=max_queries,
        instruction=instruction,
        system_instruction=system_instruction,
    )
    drop = drops_own_id(task.name) if drop_own_id is None else drop_own_id
    ranked = study(index, Collection(task, lambda template: (), drop_own_id=drop), plan, on_progress=on_progress)
    return reports_of(measured(ranked, per_query_of(ranked)))
