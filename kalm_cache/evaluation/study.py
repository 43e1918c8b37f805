"""Run every system of a plan on one collection: first stages, bi-encoders, the reranker at each codec and chunk size.

Every system but the first stages ranks the same candidates, found once. With a run folder, systems that an earlier run
has finished are taken from there.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.collections.collection import Collection
from kalm_cache.evaluation.collections.trec import Scored, ScoredRun
from kalm_cache.evaluation.index_facts import Facts, facts_of
from kalm_cache.evaluation.plan import Plan, sample_queries
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
    without_own,
)
from kalm_cache.first_stage import Mode
from kalm_cache.model.prompts import Prompt, PromptTokens
from kalm_cache.scoring.shared_prefix import SAMPLE

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

logger = logging.getLogger(__name__)
RECALL_DEPTH = 100  # first stages are measured to here, however few candidates are reranked
GIVEN = "given"  # what the system is called whose candidates came from a file or from the benchmark


@dataclass(frozen=True, slots=True)
class Study:
    """A collection's systems: first stages, then bi-encoders, the reranker's points, and these interpolated.

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
        index, collection, plan: the passages; queries, judgments and instructions; what to ask.
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
    keep = _RunCache(kept, task)
    keep.save_facts(facts)
    systems = _first_stages(index, collection, plan, task, mode, keep)
    candidates = _candidates(systems, name, task, plan.k)
    _warn_of_own_ids(collection, candidates)
    for label, embedder in _labels("bi-encoder", plan.bi_encoders).items():
        systems.append(keep(label, partial(bi_encode, index, task, candidates, embedder, label)))
    on_query = _counted(on_progress, len(plan.points) * len(task.queries))
    prompts = _prompts(index, collection, task, plan)
    for point in plan.points:
        make = partial(_measure, index, point, prompts, candidates, sensitivity, workspace, on_query)
        systems.append(keep(point.name, make))
    return _with_interpolated(Study(task, len(collection.task.queries), plan.k, facts, systems), candidates, plan)


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
    systems = [
        kept.load(name, task.queries) for name in dict.fromkeys([*names, *(point.name for point in plan.points)])
    ]
    valid = [system for system in systems if system is not None]
    if len(valid) < len(systems):
        return None
    candidates = _candidates(valid, facts.candidates, task, plan.k)
    _warn_of_own_ids(collection, candidates)
    return _with_interpolated(Study(task, len(collection.task.queries), plan.k, facts, valid), candidates, plan)


def _first_stages(
    index: PassageIndex, collection: Collection, plan: Plan, task: BeirTask, mode: Mode, keep: _RunCache
) -> list[System]:
    """The index's modes, the exact searches, and the given candidates, in this order."""
    depth = max(plan.k, RECALL_DEPTH)
    systems, drop = [], bool(collection.drop_own_id)
    for way in dict.fromkeys([*plan.compared, *([mode] if collection.given is None else [])]):
        systems.append(keep(way, partial(search, index, task, depth, way, drop_own_id=drop)))
    for label, embedder in _labels("dense", plan.dense).items():
        systems.append(keep(label, partial(search_dense, index, task, depth, embedder, label, drop_own_id=drop)))
    if collection.given is not None:
        systems.append(keep(GIVEN, partial(_given, collection.given, task, depth, drop)))
    return systems


def _candidates(systems: Sequence[System], name: str, task: BeirTask, k: int) -> dict[str, list[Scored]]:
    """The first `k` passages of the system called `name`, for every query."""
    run = next(system for system in systems if system.name == name).run
    return {query_id: list(run.get(query_id, ()))[:k] for query_id in task.queries}


def _measure(
    index: PassageIndex,
    point: Point,
    prompts: Mapping[str, PromptTokens],
    candidates: ScoredRun,
    sensitivity: NDArray[np.float64] | None,
    workspace: Path | None,
    on_query: Callable[[], None],
) -> System:
    sample = index.store.sample(SAMPLE) if point.shared_prefix else None
    doc_ids = list(dict.fromkeys([*distinct_ids(candidates.values()), *(sample or ())]))
    with open_point(index, point, doc_ids, sensitivity, workspace) as opened:
        return rerank(index.query_side, opened, point.name, prompts, candidates, on_query, sample)


def _counted(on_progress: Callable[[int, int], None] | None, total: int) -> Callable[[], None]:
    """What to call after each query: passes on how many calls there have been."""
    steps = itertools.count(1)
    return (lambda: on_progress(next(steps), total)) if on_progress else (lambda: None)


def _with_interpolated(study: Study, candidates: ScoredRun, plan: Plan) -> Study:
    """The study with each point interpolated with the first stage, at every weight of the plan."""
    points = study.of_kind("reranker")
    mixed = [interpolate_run(point, candidates, weight) for weight in plan.first_stage_weights for point in points]
    return replace(study, systems=[*study.systems, *mixed])


@dataclass(frozen=True, slots=True)
class _RunCache:
    """Takes a system from the run folder, or makes it and puts it there."""

    kept: RunFolder | None
    task: BeirTask

    def save_facts(self, facts: Facts) -> None:
        if self.kept is not None:
            self.kept.save_facts(asdict(facts))

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


def _given(given: ScoredRun, task: BeirTask, depth: int, drop_own_id: bool) -> System:
    empty = [query_id for query_id in task.queries if not given.get(query_id)]
    if empty:
        logger.warning("%s: %d queries have no candidate given, as %r", task.name, len(empty), empty[0])
    run = {query_id: list(given.get(query_id, ())) for query_id in task.queries}
    if drop_own_id:
        run = {query_id: without_own(query_id, ranked) for query_id, ranked in run.items()}
    return System(GIVEN, "first stage", {query_id: ranked[:depth] for query_id, ranked in run.items()}, Cost())


def _warn_of_own_ids(collection: Collection, candidates: ScoredRun) -> None:
    """Say so where queries are among their own candidates, and nobody has said whether they may be."""
    own_found = sum(any(hit.doc_id == query_id for hit in ranked) for query_id, ranked in candidates.items())
    if own_found and collection.drop_own_id is None:
        logger.warning(
            "%s: %d of %d queries have a passage of their own id among the candidates; if these are the queries "
            "themselves, as in ArguAna and Quora, leave them out with --drop-own-id (drop_own_id); else --keep-own-id",
            collection.task.name,
            own_found,
            len(candidates),
        )


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
    if index.query_side.isolated is not None and any(point.shared_prefix for point in plan.points):
        raise UsageError("the decoder isolates its prefix, so that passages share it already: leave shared_prefix out")
    for point in plan.points:  # now, and not after an hour at the first of them
        check_point(index, point)
