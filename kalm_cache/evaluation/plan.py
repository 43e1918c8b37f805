"""What is asked of a collection: systems, candidates, a sample of its queries. Runs nothing."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection
from kalm_cache.evaluation.points import Point
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION

logger = logging.getLogger(__name__)
SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a collection.

    Attributes:
        points: where the reranker is measured, in this order.
        k: candidates that are reranked.
        first_stage: whose candidates; `None` = the best mode that the index has. Given candidates come before it.
        compared: further modes of the index's first stage to measure.
        dense: embedders to search all passages with, exactly, as further first stages.
        bi_encoders: embedders to rank the same candidates with.
        first_stage_weights: every point is also measured with the first stage interpolated, at each weight.
        max_queries: a fixed sample of so many; `None` = all.
        instruction: `None` = the collection's, or else the model's default.
        system_instruction: the prompt's first line.
    """

    points: tuple[Point, ...]
    k: int = 100
    first_stage: Mode | None = None
    compared: tuple[Mode, ...] = ()
    dense: tuple[str, ...] = ()
    bi_encoders: tuple[str, ...] = ()
    first_stage_weights: tuple[float, ...] = ()
    max_queries: int | None = None
    instruction: str | None = None
    system_instruction: str = DEFAULT_SYSTEM_INSTRUCTION

    def instruction_for(self, collection: Collection, query_id: str) -> str:
        """What the query's prompt says."""
        if self.instruction is not None:
            return self.instruction
        return collection.instructions.get(query_id) or collection.instruction or DEFAULT_INSTRUCTION


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


def settings_key(plan: Plan, collection: Collection, others: Mapping[str, Any]) -> dict[str, Any]:
    """What a run folder's systems must have in common: all that changes a ranking, but for which systems there are."""
    return {
        "split": collection.task.split,
        "k": plan.k,
        "first_stage": plan.first_stage,
        "max_queries": plan.max_queries,
        "drop_own_id": collection.drop_own_id or None,  # as runs of before have it
        "instruction": plan.instruction_for(collection, ""),
        "system_instruction": plan.system_instruction,
        **others,
    }
