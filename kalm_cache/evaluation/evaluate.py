"""An index and judged queries → quality of its first stage and of its reranked answers, as a reader of it gets them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.beir import BeirTask
from kalm_cache.evaluation.metrics import Run, measure
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.pooling import check_ratio

if TYPE_CHECKING:
    from kalm_cache.index import PassageIndex

logger = logging.getLogger(__name__)
RECALL_DEPTH = 100  # the first stage is measured to here, however few candidates are reranked
SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class FirstStageQuality:
    """The first stage alone, over its first 100 candidates (or `k`, where that is more)."""

    mode: Mode
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

    def to_json(self) -> dict[str, Any]:
        """Fields under the names of their measures, to 4 decimals."""
        return {"ndcg@10": round(self.ndcg_at_10, 4), "mrr@10": round(self.mrr_at_10, 4)}


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One index on one collection at one chunk size.

    `bytes_per_passage` are those of the generation's files, at `stored_chunk_size`. `sampled_from` counts the split's
    queries, of which `queries` were asked. `missing_passages` are relevant ones that the index does not hold: they
    count as not found. `ms_per_query` is the mean of first stage and reranking together, one query at a time.
    """

    dataset: str
    split: str
    queries: int
    first_stage: FirstStageQuality
    reranked: RerankedQuality
    chunk_size: int
    codec: str
    bytes_per_passage: float
    k: int
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


def evaluate(
    index: PassageIndex,
    task: BeirTask,
    *,
    k: int = 100,
    first_stage: Mode | None = None,
    chunk_sizes: Sequence[int] | None = None,
    max_queries: int | None = None,
    instruction: str = DEFAULT_INSTRUCTION,
    system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[EvaluationReport]:
    """Answer the task's queries and measure the answers: one report for each chunk size.

    A passage with the query's own id stays in the answer (BEIR's script drops it, for the sake of ArguAna and Quora).

    Args:
        index: holds the task's corpus.
        task: queries and judgments.
        k: candidates that are reranked.
        first_stage: `dense`, `bm25` or `fused`; `None` = the best that the index has.
        chunk_sizes: pooling ratios: the stored one or multiples of it; `None` = the index's default alone.
        max_queries: ask a sample of so many queries, the same in every run; `None` = all.
        instruction: what the queries ask for.
        system_instruction: the prompt's first line.
        on_progress: called after every reranked query with the number done, and that of all, over all chunk sizes.

    Raises:
        UsageError: the index holds none of the relevant passages, or an option does not fit; says which.
    """
    ratios = list(chunk_sizes) if chunk_sizes is not None else [index.chunk_size]
    _check_options(index, k, ratios)
    sample = sample_queries(task, max_queries)
    missing = _count_missing(index, sample)
    mode = first_stage or index.first_stage.modes[-1]
    started = time.perf_counter()
    found = first_stage_run(index, sample, max(k, RECALL_DEPTH), mode)
    first_seconds = time.perf_counter() - started
    first_quality = _first_stage_quality(sample, found, mode)
    reports: list[EvaluationReport] = []
    for ratio in ratios:
        done, total = len(reports) * len(sample.queries), len(ratios) * len(sample.queries)
        started = time.perf_counter()
        reranked: dict[str, list[str]] = {}
        for query_id, query in sample.queries.items():
            answer = index.rerank(
                query,
                found[query_id][:k],
                instruction=instruction,
                system_instruction=system_instruction,
                chunk_size=ratio,
                with_text=False,
            )
            reranked[query_id] = [result.doc_id for result in answer.results]
            if on_progress is not None:
                on_progress(done + len(reranked), total)
        seconds = first_seconds + time.perf_counter() - started
        quality = _reranked_quality(sample, reranked)
        reports.append(_report(index, sample, first_quality, quality, ratio, k, len(task.queries), missing, seconds))
    return reports


def sample_queries(task: BeirTask, max_queries: int | None) -> BeirTask:
    """The task with `max_queries` of its queries: a seeded shuffle of the sorted ids, so that samples nest."""
    if max_queries is None or max_queries >= len(task.queries):
        return task
    if max_queries < 1:
        raise UsageError(f"max_queries is {max_queries}, expected 1 or more")
    query_ids = sorted(task.queries)
    random.Random(SAMPLE_SEED).shuffle(query_ids)
    logger.info("%s %s: a sample of %d of %d queries", task.name, task.split, max_queries, len(query_ids))
    kept = query_ids[:max_queries]
    return BeirTask(task.name, task.split, {i: task.queries[i] for i in kept}, {i: task.qrels[i] for i in kept})


def first_stage_run(index: PassageIndex, task: BeirTask, depth: int, mode: Mode) -> dict[str, list[str]]:
    """The `depth` best candidates of each query, as passage ids, one query at a time. Raises as `FirstStage.search`."""
    run: dict[str, list[str]] = {}
    for query_id, query in task.queries.items():
        candidates = index.first_stage.search(query, depth, mode)
        run[query_id] = index.store.doc_ids(candidates.numbers.tolist())
    return run
