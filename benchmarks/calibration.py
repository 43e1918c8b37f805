"""What a calibration is worth on queries that it was not fitted on.

    python -m benchmarks.calibration DATA/beir/squad-dev --index INDEX [--fit 300] [--measured 600]

Fits as `kalm-cache calibrate` does, on a sample of the queries; everything that is printed is of other queries: the
expected calibration error of P(yes) and of the probability, precision and recall of one threshold at every chunk size,
and nDCG@10 by the margin, with weight 1, and with the weight that was fitted.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from indexer.build.index_job import is_built, load_encoders, run_index_job
from indexer.corpus import read_corpus
from kalm_cache.calibration import FittedCalibration, FittedCurve
from kalm_cache.evaluation.collections.beir import BeirTask, load_beir
from kalm_cache.evaluation.fit_calibration import (
    FitPlan,
    Judged,
    ScoredQuery,
    fit_calibration,
    labelled_pairs,
    score_queries,
)
from kalm_cache.evaluation.measures.calibration import expected_error
from kalm_cache.evaluation.measures.metrics import measure
from kalm_cache.evaluation.plan import sample_queries
from kalm_cache.evaluation.reports.markdown import table
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.model.prompts import DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION
from kalm_cache.settings import Settings, load_settings

CHUNK_SIZES = (4, 8, 16, 32)
PRECISION = 0.8  # of the threshold that is tried at every chunk size
Scored = dict[str, ScoredQuery]


def halves(task: BeirTask, fit: int, measured: int) -> tuple[BeirTask, BeirTask]:
    """`fit` queries of a task, and `measured` others; samples of one seeded shuffle."""
    both, first = sample_queries(task, fit + measured), sample_queries(task, fit)
    rest = [query_id for query_id in both.queries if query_id not in first.queries]
    queries = {query_id: both.queries[query_id] for query_id in rest}
    return first, BeirTask(task.name, task.split, queries, {query_id: both.qrels[query_id] for query_id in rest})


def build(folder: Path, index: Path, settings: Settings) -> None:
    """Index a BEIR folder, unless that was done."""
    encoders = load_encoders(settings)
    if not is_built(index, encoders):
        lines = read_corpus(folder)
        run_index_job(lines, index, settings, encoders, on_reject=lambda line: None, on_progress=lambda counts: None)


def errors(scored: Scored, judged: Judged, curve: FittedCurve) -> tuple[float, float]:
    """Expected calibration error of P(yes), and of the probability."""
    margins, labels = labelled_pairs(scored, judged, list(scored))
    plain = FittedCurve(curve.chunk_size, 1.0, 0.0, None, [])
    before, after = (
        expected_error(np.array([each.probability(margin) for margin in margins.tolist()]), labels)
        for each in (plain, curve)
    )
    return before, after


def at_threshold(scored: Scored, judged: Judged, curve: FittedCurve, least: float) -> tuple[float, float]:
    """Precision and recall of the pairs with a probability of `least` or more."""
    margins, labels = labelled_pairs(scored, judged, list(scored))
    chosen = np.array([curve.probability(margin) >= least for margin in margins.tolist()])
    hits = int((chosen & labels).sum())
    return hits / max(int(chosen.sum()), 1), hits / int(labels.sum())


def report(calibration: FittedCalibration, scored: dict[int, Scored], judged: Judged) -> str:
    """The three tables, of queries that were not fitted on."""
    first = calibration.curves[0]
    found = next(one for one in first.thresholds if one.precision == PRECISION)
    same_margin = first.offset + first.temperature * float(np.log(found.probability / (1 - found.probability)))
    rows = []
    for curve in calibration.curves:
        here = scored[curve.chunk_size]
        before, after = errors(here, judged, curve)
        by_probability = at_threshold(here, judged, curve, found.probability)
        uncalibrated = FittedCurve(curve.chunk_size, 1.0, same_margin, None, [])
        by_margin = at_threshold(here, judged, uncalibrated, 0.5)
        weight = curve.first_stage_weight or 0.0
        ndcg = [
            measure(judged.task.qrels, {one: each.ranking(w) for one, each in here.items()}, ["ndcg@10"])["ndcg@10"]
            for w in (0.0, 1.0, weight)
        ]
        rows.append(
            [
                str(curve.chunk_size),
                *(f"{value:.4f}" for value in (before, after)),
                *("{:.3f}, {:.3f}".format(*each) for each in (by_margin, by_probability)),
                f"{weight:g}",
                *(f"{value:.4f}" for value in ndcg),
            ]
        )
    header = [
        *("r", "error of P(yes)", "error, calibrated", "at one margin", f"at probability {found.probability:.3f}"),
        *("weight", "nDCG@10, margin", "weight 1", "auto"),
    ]
    return table(header, rows)


def main() -> None:
    """Print what was fitted and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--fit", type=int, default=300)
    parser.add_argument("--measured", type=int, default=600)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    build(args.folder, args.index, load_settings(chunk_size=CHUNK_SIZES[0], dtype="float32"))
    fitted_on, others = halves(load_beir(args.folder, args.split), args.fit, args.measured)
    plan = FitPlan(DEFAULT_INSTRUCTION, DEFAULT_SYSTEM_INSTRUCTION, CHUNK_SIZES)
    with PassageIndex.open(args.index, dtype="float32") as index:
        calibration = fit_calibration(index, Judged(fitted_on, True, ""), plan).calibration
        judged, mode = Judged(others, True, ""), index.first_stage.modes[-1]
        scored = score_queries(index, judged, plan, mode, lambda done, total: None)
    print(f"{args.folder.name}: fitted on {len(fitted_on.queries)} queries, measured on {len(others.queries)} others\n")
    for curve in calibration.curves:
        print(f"r = {curve.chunk_size}: temperature {curve.temperature:.3f}, offset {curve.offset:+.3f}")
    print(f"\n{report(calibration, scored, judged)}")


if __name__ == "__main__":
    main()
