"""Judged queries of an index → its calibration: a curve for each chunk size, and the weight of the first stage.

What is said of them is cross-validated: each query is measured by curves and weights that were fitted without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kalm_cache.calibration import FittedCalibration, FittedCurve
from kalm_cache.calibration.fit import fit_sigmoid, thresholds
from kalm_cache.errors import UsageError
from kalm_cache.evaluation.collections.beir import BeirTask
from kalm_cache.evaluation.measures.calibration import expected_error
from kalm_cache.evaluation.measures.metrics import measure_queries
from kalm_cache.first_stage import Mode, z_scores
from kalm_cache.model.prompts import Prompt
from kalm_cache.scoring.pipeline import InlineDriver, RankingRules, Shortlist, rerank, run_inline
from kalm_cache.scoring.ranking import best_first, interpolate

if TYPE_CHECKING:
    from kalm_cache.index.passage_index import PassageIndex

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)  # of the first stage; 0 = the margins alone
MEASURE, FOLDS, SEED = "ndcg@10", 5, 0


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged queries.

    task: queries, and grades by passage id; relevant from 1 on. searched: the first stage finds the candidates, and
    what nobody judged counts as not relevant; else the judged passages alone are scored. digest: SHA-256 of their file.
    """

    task: BeirTask
    searched: bool
    digest: str


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What is fitted: chunk sizes, and how candidates are searched. `None` = as the index has it."""

    instruction: str
    system_instruction: str
    chunk_sizes: Sequence[int]
    first_stage: Mode | None = None
    k: int = 100


@dataclass(frozen=True, slots=True)
class CurveMeasure:
    """One chunk size, measured on queries that its curve was not fitted on.

    ece_before, ece: expected calibration error of P(yes), and of the probability. ndcg_margin, ndcg: nDCG@10 by the
    margin alone, and with the fitted weight of the first stage; ndcg_weight_1: with weight 1. `None` without searches.
    """

    chunk_size: int
    ece_before: float
    ece: float
    ndcg_margin: float | None
    ndcg_weight_1: float | None
    ndcg: float | None


@dataclass(frozen=True, slots=True)
class FittedResult:
    """What was fitted on all queries, and how good it is on others."""

    calibration: FittedCalibration
    measures: list[CurveMeasure]


@dataclass(slots=True)
class ScoredQuery:
    """The pairs of one query at one chunk size, in the order of the candidates."""

    doc_ids: list[str] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    z_scores: list[float] = field(default_factory=list)

    def ranking(self, weight: float) -> list[str]:
        """Ids by margin + weight · z-score."""
        values = interpolate(self.margins, self.z_scores, weight) if weight else self.margins
        return [self.doc_ids[i] for i in best_first(values, None)]


def fit_calibration(
    index: PassageIndex,
    judged: Judged,
    plan: FitPlan,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FittedResult:
    """Score judged queries, and fit.

    Args:
        index: open.
        judged: of this index.
        plan: what is fitted.
        on_progress: called after every query with the number done, and that of all.

    Raises:
        UsageError: too few judgments; a chunk size that is no multiple of the stored one; a mode that was not built.
        UnknownIdError: a judged pair of a passage that the index does not hold.
    """
    mode = plan.first_stage or index.first_stage.modes[-1]
    scored = score_queries(index, judged, plan, mode, on_progress)
    curves, measures = [], []
    for size in plan.chunk_sizes:
        curve, measure = _fit(size, scored[size], judged)
        curves.append(curve)
        measures.append(measure)
    calibration = FittedCalibration(
        decoder=index.decoder.digest,
        shared_prefix=index.shared_prefix,
        instruction=plan.instruction,
        first_stage=mode if judged.searched else "",
        k=plan.k if judged.searched else 0,
        judgments=judged.digest,
        queries=len(judged.task.queries),
        pairs=sum(len(one.doc_ids) for one in scored[plan.chunk_sizes[0]].values()),
        curves=curves,
    )
    return FittedResult(calibration, measures)


def score_queries(
    index: PassageIndex, judged: Judged, plan: FitPlan, mode: Mode, on_progress: Callable[[int, int], None]
) -> dict[int, dict[str, ScoredQuery]]:
    """The pairs of judged queries, by chunk size and query id; arguments and errors as in `fit_calibration`."""
    scored: dict[int, dict[str, ScoredQuery]] = {size: {} for size in plan.chunk_sizes}
    for done, (query_id, text) in enumerate(judged.task.queries.items(), start=1):
        grades = judged.task.qrels[query_id]
        shortlist = index.find(text, plan.k, mode) if judged.searched else Shortlist(list(grades))
        prompt = Prompt(text, plan.instruction, plan.system_instruction)
        for size in plan.chunk_sizes:
            scored[size][query_id] = _score(index, prompt, shortlist, size)
        on_progress(done, len(judged.task.queries))
    return scored


def _score(index: PassageIndex, prompt: Prompt, shortlist: Shortlist, chunk_size: int) -> ScoredQuery:
    answer = run_inline(rerank(InlineDriver(), index.stored, prompt, shortlist, RankingRules(chunk_size)))
    margins = {result.doc_id: result.margin for result in answer.results}
    found = shortlist.candidates
    z = [0.0] * len(shortlist.doc_ids) if found is None else z_scores(found.scores).tolist()
    places = [place for place, doc_id in enumerate(shortlist.doc_ids) if doc_id in margins]
    doc_ids = [shortlist.doc_ids[place] for place in places]
    return ScoredQuery(doc_ids, [margins[doc_id] for doc_id in doc_ids], [z[place] for place in places])


def _fit(chunk_size: int, scored: dict[str, ScoredQuery], judged: Judged) -> tuple[FittedCurve, CurveMeasure]:
    query_ids = list(scored)
    values = _values(scored, judged) if judged.searched else None  # (queries, weights)
    margins, labels = labelled_pairs(scored, judged, query_ids)
    temperature, offset = fit_sigmoid(margins, labels)
    weight = None if values is None else WEIGHTS[_best(values)]
    curve = FittedCurve(chunk_size, temperature, offset, weight, [])
    probabilities = np.array([curve.probability(margin) for margin in margins.tolist()])
    curve = FittedCurve(chunk_size, temperature, offset, weight, thresholds(probabilities, labels))
    return curve, _cross_validated(chunk_size, scored, judged, values)


def _cross_validated(
    chunk_size: int, scored: dict[str, ScoredQuery], judged: Judged, values: NDArray[np.float64] | None
) -> CurveMeasure:
    query_ids = list(scored)
    order = list(range(len(query_ids)))
    random.Random(SEED).shuffle(order)
    before: list[float] = []
    after: list[float] = []
    labels: list[bool] = []
    chosen = np.zeros(len(query_ids))
    for fold in range(FOLDS):
        out = order[fold::FOLDS]
        rest = [place for place in order if place not in set(out)]
        temperature, offset = fit_sigmoid(*labelled_pairs(scored, judged, [query_ids[place] for place in rest]))
        fitted = FittedCurve(chunk_size, temperature, offset, None, [])
        plain = FittedCurve(chunk_size, 1.0, 0.0, None, [])
        margins, relevant = labelled_pairs(scored, judged, [query_ids[place] for place in out])
        before += [plain.probability(margin) for margin in margins.tolist()]
        after += [fitted.probability(margin) for margin in margins.tolist()]
        labels += relevant.tolist()
        if values is not None:
            chosen[out] = values[out, _best(values[rest])]
    truth = np.array(labels)
    return CurveMeasure(
        chunk_size=chunk_size,
        ece_before=expected_error(np.array(before), truth),
        ece=expected_error(np.array(after), truth),
        ndcg_margin=None if values is None else float(values[:, WEIGHTS.index(0.0)].mean()),
        ndcg_weight_1=None if values is None else float(values[:, WEIGHTS.index(1.0)].mean()),
        ndcg=None if values is None else float(chosen.mean()),
    )


def _values(scored: dict[str, ScoredQuery], judged: Judged) -> NDArray[np.float64]:
    """nDCG@10 of each query at each weight: (queries, weights)."""
    columns = []
    for weight in WEIGHTS:
        found = measure_queries(
            judged.task.qrels, {one: pairs.ranking(weight) for one, pairs in scored.items()}, [MEASURE]
        )
        columns.append([found[query_id].get(MEASURE, 0.0) for query_id in scored])
    return np.array(columns).T


def _best(values: NDArray[np.float64]) -> int:
    """The place of the weight with the best mean; of equal ones, the lowest weight."""
    return int(values.mean(0).round(6).argmax())


def labelled_pairs(
    scored: dict[str, ScoredQuery], judged: Judged, query_ids: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Margins (n,) and whether the passage is relevant (n,), of all pairs of some queries."""
    margins: list[float] = []
    labels: list[bool] = []
    for query_id in query_ids:
        grades = judged.task.qrels[query_id]
        margins += scored[query_id].margins
        labels += [grades.get(doc_id, 0) >= 1 for doc_id in scored[query_id].doc_ids]
    if not margins:
        raise UsageError("there are fewer judged queries than folds of the cross-validation: give more judgments")
    return np.array(margins), np.array(labels)
