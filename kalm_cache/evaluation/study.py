"""One collection, asked in every way that a plan names: first stages, bi-encoders, and the reranker at each point.

Every system but the first stages ranks the same candidates, found once. With a run folder, systems that an earlier run
has finished are taken from there.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection
from kalm_cache.evaluation.collections.trec import ScoredRun
from kalm_cache.evaluation.points import Point, check_point, open_point
from kalm_cache.evaluation.run_folder import RunFolder
from kalm_cache.evaluation.systems import (
    Cost,
    System,
    bi_encode,
    distinct_ids,
    interpolate_run,
    rerank,
    search,
    search_dense,
)
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, Prompt, PromptTokens
from kalm_cache.storage.passage_store import key_of

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

logger = logging.getLogger(__name__)
RECALL_DEPTH = 100  # first stages are measured to here, however few candidates are reranked
SAMPLE_SEED = 0
GIVEN = "given"  # what the system is called whose candidates came from a file or from the benchmark


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


@dataclass(frozen=True, slots=True)
class Facts:
    """What an index says of itself, and of a collection. `missing_passages`: relevant ones that it does not hold.

    `bytes_per_passage` are those of all its files, `candidates` is the system that the candidates are from.
    """

    model: str
    dtype: str
    generation: str
    codec: str
    chunk_size: int
    passages: int
    bytes_per_passage: float
    missing_passages: int
    candidates: str


@dataclass(frozen=True, slots=True)
class Study:
    """A collection's systems: first stages, then bi-encoders, the reranker's points, and these blended.

    `task` holds the queries that were asked, `sampled_from` counts the split's.
    """

    task: BeirTask
    sampled_from: int
    k: int
    facts: Facts
    systems: list[System]

    @property
    def candidates(self) -> System:
        """The first stage whose candidates were ranked again."""
        return next(system for system in self.systems if system.name == self.facts.candidates)

    def of_kind(self, kind: str) -> list[System]:
        """The systems of one kind, in their order."""
        return [system for system in self.systems if system.kind == kind]


def study(
    index: PassageIndex,
    collection: Collection,
    plan: Plan,
    *,
    sensitivity: NDArray[np.float64] | None = None,
    kept: RunFolder | None = None,
    workspace: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Run the systems of a plan, or take them from `kept`.

    Args:
        index: holds the collection's corpus.
        collection: queries, judgments, instructions.
        plan: what to ask.
        sensitivity: (D, D), what codecs below 8 bits round by; `None` = to nearest.
        kept: where finished systems are, and go.
        workspace: folder for the stores of points; `None` = the system's.
        on_progress: called after every reranked query with the number done, and that of all, over all points.

    Raises:
        UsageError: the plan does not fit the index, or it holds none of the relevant passages.
    """
    _check_plan(index, plan)
    task = sample_queries(collection.task, plan.max_queries)
    mode = plan.first_stage or index.first_stage.modes[-1]
    name = mode if collection.given is None else GIVEN
    facts = facts_of(index, task, name)
    if kept is not None:
        kept.save_facts(asdict(facts))
    keep = _Keeping(kept, task)
    depth = max(plan.k, RECALL_DEPTH)
    systems = []
    for one in dict.fromkeys([*plan.compared, *([mode] if collection.given is None else [])]):
        systems.append(keep(one, partial(search, index, task, depth, one, drop_own_id=collection.drop_own_id)))
    for label, embedder in _labels("dense", plan.dense).items():
        systems.append(keep(label, partial(search_dense, index, task, depth, embedder, label)))
    if collection.given is not None:
        systems.append(keep(GIVEN, partial(_given, collection.given, task, depth)))
    found = next(system for system in systems if system.name == name).run
    candidates = {query_id: list(found.get(query_id, ()))[: plan.k] for query_id in task.queries}
    for label, embedder in _labels("bi-encoder", plan.bi_encoders).items():
        systems.append(keep(label, partial(bi_encode, index, task, candidates, embedder, label)))
    steps, total = itertools.count(1), len(plan.points) * len(task.queries)
    on_query = (lambda: on_progress(next(steps), total)) if on_progress else (lambda: None)
    prompts = _prompts(index, collection, task, plan)
    for point in plan.points:

        def measure(point: Point = point) -> System:
            with open_point(index, point, distinct_ids(candidates.values()), sensitivity, workspace) as opened:
                return rerank(index.query_side, opened, point.name, prompts, candidates, on_query)

        systems.append(keep(point.name, measure))
    systems += _interpolated(systems, candidates, plan)
    return Study(task, len(collection.task.queries), plan.k, facts, systems)


def finished_study(collection: Collection, plan: Plan, kept: RunFolder) -> Study | None:
    """The study that an earlier run has finished, without index or model; `None` where something is missing."""
    stored = kept.load_facts()
    if stored is None:
        return None
    task, facts = sample_queries(collection.task, plan.max_queries), Facts(**stored)
    names = [*plan.compared, facts.candidates, *_labels("dense", plan.dense), *_labels("bi-encoder", plan.bi_encoders)]
    if facts.candidates == GIVEN:  # in the order of `study`
        names.remove(facts.candidates)
        names.insert(len(plan.compared) + len(plan.dense), facts.candidates)
    systems = [kept.load(name, task.queries) for name in dict.fromkeys([*names, *(one.name for one in plan.points)])]
    valid = [system for system in systems if system is not None]
    if len(valid) < len(systems):
        return None
    found = next(system for system in valid if system.name == facts.candidates).run
    valid += _interpolated(
        valid, {query_id: list(found.get(query_id, ()))[: plan.k] for query_id in task.queries}, plan
    )
    return Study(task, len(collection.task.queries), plan.k, facts, valid)


def _interpolated(systems: Sequence[System], candidates: ScoredRun, plan: Plan) -> list[System]:
    points = [system for system in systems if system.kind == "reranker"]
    return [interpolate_run(point, candidates, weight) for weight in plan.first_stage_weights for point in points]


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


def facts_of(index: PassageIndex, task: BeirTask, candidates: str) -> Facts:
    """See `Facts`. Raises `UsageError` when the index holds none of the relevant passages."""
    manifest = index.generation.manifest
    file_bytes = sum(receipt.bytes for receipt in manifest.files.values())
    return Facts(
        model=manifest.model,
        dtype=str(index.query_side.dtype).removeprefix("torch."),
        generation=manifest.generation,
        codec=manifest.fingerprint.codec,
        chunk_size=manifest.fingerprint.chunk_size,
        passages=manifest.counts.passages,
        bytes_per_passage=round(file_bytes / manifest.counts.passages, 1),
        missing_passages=_count_missing(index, task),
        candidates=candidates,
    )


@dataclass(frozen=True, slots=True)
class _Keeping:
    """Takes a system from the run folder, or makes it and puts it there."""

    kept: RunFolder | None
    task: BeirTask

    def __call__(self, name: str, make: Callable[[], System]) -> System:
        found = None if self.kept is None else self.kept.load(name, self.task.queries)
        if found is None:
            logger.info("%s %s: %s", self.task.name, self.task.split, name)
            found = make()
            if self.kept is not None:
                self.kept.save(found)
        return found


def _labels(prefix: str, embedders: Sequence[str]) -> dict[str, str]:
    """System name -> embedder."""
    return {f"{prefix} {Path(embedder).name}": embedder for embedder in embedders}


def _given(given: ScoredRun, task: BeirTask, depth: int) -> System:
    empty = [query_id for query_id in task.queries if not given.get(query_id)]
    if empty:
        logger.warning("%s: %d queries have no candidate given, as %r", task.name, len(empty), empty[0])
    return System(GIVEN, "first stage", {one: list(given.get(one, ()))[:depth] for one in task.queries}, Cost())


def _prompts(index: PassageIndex, collection: Collection, task: BeirTask, plan: Plan) -> dict[str, PromptTokens]:
    prompts = {
        query_id: index.query_side.tokenize(
            Prompt(query, plan.instruction_for(collection, query_id), plan.system_instruction)
        )
        for query_id, query in task.queries.items()
    }
    cut = sum(prompt.truncated for prompt in prompts.values())
    if cut:
        logger.warning("%s: %d queries were cut at %d tokens", task.name, cut, index.query_side.query_max_length)
    return prompts


def _check_plan(index: PassageIndex, plan: Plan) -> None:
    if plan.k < 1:
        raise UsageError(f"k is {plan.k}, expected 1 or more")
    for point in plan.points:  # now, and not after an hour at the first of them
        check_point(index, point)


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


def settings_key(plan: Plan, collection: Collection, others: Mapping[str, Any]) -> dict[str, Any]:
    """What a run folder's systems must have in common: all that changes a ranking, but for which systems there are."""
    return {
        "split": collection.task.split,
        "k": plan.k,
        "first_stage": plan.first_stage,
        "max_queries": plan.max_queries,
        "instruction": plan.instruction_for(collection, ""),
        "system_instruction": plan.system_instruction,
        **others,
    }
