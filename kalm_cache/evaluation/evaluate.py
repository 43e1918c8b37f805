"""An index and judged queries → how good its first stage and its reranked answers are."""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.beir import BeirTask
from kalm_cache.evaluation.metrics import Run, measure
from kalm_cache.evaluation.report import EvaluationReport, FirstStageQuality, RerankedQuality
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.pooling import check_ratio
from kalm_cache.store import key_of

if TYPE_CHECKING:
    from kalm_cache.index import PassageIndex

logger = logging.getLogger(__name__)
RECALL_DEPTH = 100  # the first stage is measured to here, however few candidates are reranked
SAMPLE_SEED = 0


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
    """Answer the task's queries and measure the answers: one report for each chunk size, over the same candidates.

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
        UsageError: an option does not fit, or the index holds none of the relevant passages.
    """
    ratios = [index.chunk_size] if chunk_sizes is None else list(chunk_sizes)
    _check_options(index, k, ratios)
    sample = sample_queries(task, max_queries)
    missing = _count_missing(index, sample)
    mode = first_stage or index.first_stage.modes[-1]
    started = time.perf_counter()
    found = first_stage_run(index, sample, max(k, RECALL_DEPTH), mode)
    first_seconds = time.perf_counter() - started
    first_quality = _first_stage_quality(sample, found, mode)
    candidates = {query_id: ids[:k] for query_id, ids in found.items()}
    steps, total = itertools.count(1), len(ratios) * len(sample.queries)
    reports = []
    for ratio in ratios:
        started = time.perf_counter()
        run = reranked_run(
            index,
            sample,
            candidates,
            ratio,
            instruction=instruction,
            system_instruction=system_instruction,
            on_query=lambda: on_progress(next(steps), total) if on_progress else None,
        )
        seconds = first_seconds + time.perf_counter() - started
        quality = _reranked_quality(sample, run)
        reports.append(_report(index, task, sample, first_quality, quality, ratio, k, missing, seconds))
    return reports


def sample_queries(task: BeirTask, max_queries: int | None) -> BeirTask:
    """The task with `max_queries` of its queries: a seeded shuffle of the sorted ids, so that samples nest."""
    if max_queries is not None and max_queries < 1:
        raise UsageError(f"max_queries is {max_queries}, expected 1 or more")
    if max_queries is None or max_queries >= len(task.queries):
        return task
    query_ids = sorted(task.queries)
    random.Random(SAMPLE_SEED).shuffle(query_ids)
    logger.info("%s %s: a sample of %d of %d queries", task.name, task.split, max_queries, len(query_ids))
    kept = query_ids[:max_queries]
    queries = {query_id: task.queries[query_id] for query_id in kept}
    return BeirTask(task.name, task.split, queries, {query_id: task.qrels[query_id] for query_id in kept})


def first_stage_run(index: PassageIndex, task: BeirTask, depth: int, mode: Mode) -> dict[str, list[str]]:
    """The ids of each query's `depth` best candidates, one query at a time. Raises as `FirstStage.search` does."""
    run: dict[str, list[str]] = {}
    for query_id, query in task.queries.items():
        candidates = index.first_stage.search(query, depth, mode)
        run[query_id] = index.store.doc_ids(candidates.numbers.tolist())
    return run


def reranked_run(
    index: PassageIndex,
    task: BeirTask,
    candidates: Run,
    chunk_size: int,
    *,
    instruction: str,
    system_instruction: str,
    on_query: Callable[[], None],
) -> dict[str, list[str]]:
    """The same ids in the reranker's order; `on_query` is called after each query. Raises as `PassageIndex.rerank`."""
    run: dict[str, list[str]] = {}
    for query_id, query in task.queries.items():
        answer = index.rerank(
            query,
            candidates[query_id],
            instruction=instruction,
            system_instruction=system_instruction,
            chunk_size=chunk_size,
            with_text=False,
        )
        run[query_id] = [result.doc_id for result in answer.results]
        on_query()
    return run


def _check_options(index: PassageIndex, k: int, ratios: Sequence[int]) -> None:
    if k < 1:
        raise UsageError(f"k is {k}, expected 1 or more")
    for ratio in ratios:  # now, and not after an hour at the first of them
        check_ratio(index.generation.manifest.fingerprint.chunk_size, ratio)


def _count_missing(index: PassageIndex, task: BeirTask) -> int:
    """How many relevant passages the index does not hold. Raises `UsageError` when these are all of them."""
    relevant = {key_of(doc_id) for grades in task.qrels.values() for doc_id, grade in grades.items() if grade > 0}
    missing = len(relevant.difference(index.store.keys()))
    if missing and missing == len(relevant):
        raise UsageError(
            f"{index.generation.folder} holds none of the {missing} relevant passages of {task.name} {task.split}; "
            "evaluate an index of that collection's corpus"
        )
    if missing:
        logger.warning("%s: %d of %d relevant passages are not in the index", task.name, missing, len(relevant))
    return missing


def _first_stage_quality(task: BeirTask, run: Run, mode: Mode) -> FirstStageQuality:
    means = measure(task.qrels, run, ("ndcg@10", "recall@100"))
    return FirstStageQuality(mode, means["ndcg@10"], means["recall@100"])


def _reranked_quality(task: BeirTask, run: Run) -> RerankedQuality:
    means = measure(task.qrels, run, ("ndcg@10", "mrr@10"))
    return RerankedQuality(means["ndcg@10"], means["mrr@10"])


def _report(
    index: PassageIndex,
    task: BeirTask,
    sample: BeirTask,
    first_stage: FirstStageQuality,
    reranked: RerankedQuality,
    chunk_size: int,
    k: int,
    missing: int,
    seconds: float,
) -> EvaluationReport:
    manifest = index.generation.manifest
    file_bytes = sum(receipt.bytes for receipt in manifest.files.values())
    return EvaluationReport(
        dataset=task.name,
        split=task.split,
        queries=len(sample.queries),
        first_stage=first_stage,
        reranked=reranked,
        chunk_size=chunk_size,
        codec=manifest.fingerprint.codec,
        bytes_per_passage=round(file_bytes / manifest.counts.passages, 1),
        k=k,
        stored_chunk_size=manifest.fingerprint.chunk_size,
        sampled_from=len(task.queries),
        missing_passages=missing,
        seconds=round(seconds, 3),
        ms_per_query=round(1000 * seconds / len(sample.queries), 2),
        model=manifest.model,
        generation=manifest.generation,
    )
