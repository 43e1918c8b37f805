"""Studies → what is reported: measures, comparisons, calibration, shifts. Values only; draws and writes nothing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from kalm_cache.evaluation.collections.trec import ids_of
from kalm_cache.evaluation.index_facts import Facts
from kalm_cache.evaluation.measures.calibration import Calibration, MarginShift, calibrate, margin_shift
from kalm_cache.evaluation.measures.metrics import MEASURES, kendall_tau, measure_queries
from kalm_cache.evaluation.measures.significance import Comparison, compare
from kalm_cache.evaluation.study import Study
from kalm_cache.evaluation.systems import Cost, System

COMPARED_MEASURE = "ndcg@10"
PerQuery = dict[str, dict[str, float]]  # query id -> measure -> value


@dataclass(frozen=True, slots=True)
class SystemResult:
    """One system on one collection; comparisons are of nDCG@10.

    `to_candidates` compares with the first stage whose candidates it ranked, `to_reference` with the reranker's first
    point (the finest codec and the smallest ratio, as plans order them). Both families are corrected on their own.
    `tau`: of a point with a shared prefix, Kendall's τ-a between its margins and those of the same point without, over
    the candidates of a query, the mean over queries.
    """

    name: str
    kind: str
    means: dict[str, float]
    cost: Cost
    to_candidates: Comparison | None = None
    to_reference: Comparison | None = None
    calibration: Calibration | None = None
    shift: MarginShift | None = None
    tau: float | None = None

    @property
    def rerank_ms(self) -> float | None:
        """See `Cost.rerank_ms`."""
        return self.cost.rerank_ms


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """All systems on one collection."""

    name: str
    split: str
    queries: int
    sampled_from: int
    k: int
    facts: Facts
    systems: list[SystemResult]

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON values."""
        return asdict(self)

    def of_kind(self, kind: str) -> list[SystemResult]:
        """The systems of one kind, in their order."""
        return [system for system in self.systems if system.kind == kind]


def measured(study: Study, per_query: dict[str, PerQuery]) -> CollectionResult:
    """A study's systems with their means and costs, and nothing that compares them; `per_query`: of `per_query_of`."""
    systems = [
        SystemResult(system.name, system.kind, _means(per_query[system.name]), system.cost, tau=_tau(study, system))
        for system in study.systems
    ]
    task = study.task
    return CollectionResult(task.name, task.split, len(task.queries), study.sampled_from, study.k, study.facts, systems)


def result_of(study: Study, per_query: dict[str, PerQuery] | None = None) -> CollectionResult:
    """Measure a study, and compare and calibrate its systems.

    Args:
        study: what was ranked.
        per_query: `per_query_of(study)`, where the caller has it.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    values = per_query_of(study) if per_query is None else per_query
    candidates, points = study.candidates, study.of_kind("reranker")
    reference = points[0] if points else None
    reranked = [system for system in study.systems if system.kind != "first stage"]
    to_candidates = _compare(values, reranked, candidates)
    to_reference = _compare(values, points[1:], reference)
    result = measured(study, values)
    systems = [
        replace(
            measurement,
            to_candidates=to_candidates.get(system.name),
            to_reference=to_reference.get(system.name),
            calibration=calibrate(study.task.qrels, system.run) if system.kind == "reranker" else None,
            shift=_shift(study, system, points) if system.kind == "reranker" else None,
        )
        for measurement, system in zip(result.systems, study.systems, strict=True)
    ]
    return replace(result, systems=systems)


def per_query_of(study: Study) -> dict[str, PerQuery]:
    """System name -> query id -> measure -> value."""
    return {system.name: measure_queries(study.task.qrels, ids_of(system.run), MEASURES) for system in study.systems}


def _means(values: PerQuery) -> dict[str, float]:
    return {name: math.fsum(query[name] for query in values.values()) / len(values) for name in MEASURES}


def _compare(values: dict[str, PerQuery], systems: list[System], baseline: System | None) -> dict[str, Comparison]:
    if baseline is None or len(values[baseline.name]) < 2:
        return {}
    columns = {system.name: [query[COMPARED_MEASURE] for query in values[system.name].values()] for system in systems}
    return compare(columns, baseline.name, [query[COMPARED_MEASURE] for query in values[baseline.name].values()])


def _exact(study: Study, system: System) -> System | None:
    """The same point without a shared prefix, of a reranker's point with one."""
    if system.kind != "reranker" or not system.cost.shared_prefix:
        return None
    wanted = (system.cost.codec, system.cost.chunk_size, None)
    points = study.of_kind("reranker")
    return next(
        (one for one in points if (one.cost.codec, one.cost.chunk_size, one.cost.shared_prefix) == wanted), None
    )


def _tau(study: Study, system: System) -> float | None:
    exact = _exact(study, system)
    if exact is None:
        return None
    found = []
    for query_id, ranked in exact.run.items():
        margins = {hit.doc_id: hit.score for hit in system.run[query_id]}
        both = [(hit.score, margins[hit.doc_id]) for hit in ranked if hit.doc_id in margins]
        if len(both) > 1:
            found.append(kendall_tau(*zip(*both, strict=True)))
    return math.fsum(found) / len(found) if found else None


def _shift(study: Study, system: System, points: list[System]) -> MarginShift | None:
    """Against the point of the same codec with the smallest ratio; with a shared prefix, against that without."""
    same = [point for point in points if point.cost.codec == system.cost.codec and not point.cost.shared_prefix]
    if (exact := _exact(study, system)) is not None:
        return margin_shift(study.task.qrels, exact.name, exact.run, system.run)
    reference = min(same, key=lambda point: point.cost.chunk_size or 0)
    if reference is system:
        return None
    return margin_shift(study.task.qrels, reference.name, reference.run, system.run)
