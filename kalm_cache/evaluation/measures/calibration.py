"""What a score says beside the order: P(yes) against how often passages are relevant, and margins across chunk sizes.

A passage counts as relevant from grade 1 on; an unjudged one counts as not relevant, so that collections with few
judgments make a model look more sure of itself than it is.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kalm_cache.evaluation.collections.trec import ScoredRun
from kalm_cache.evaluation.measures.metrics import Qrels
from kalm_cache.scoring.query_side import score_of

BINS = 10
SEED = 0
Margins = NDArray[np.float64]
Labels = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs with P(yes) in [low, high): how many, their mean P(yes), and the share of relevant ones among them."""

    low: float
    high: float
    pairs: int
    mean_score: float
    relevant: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold on P(yes), chosen for the best F1 on half of the queries, and what it gave on the other half."""

    score: float
    precision: float
    recall: float
    f1: float
    queries: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How P(yes) agrees with judgments over query-passage pairs.

    Attributes:
        pairs: how many.
        relevant: the share of relevant ones.
        ece: expected calibration error: the bins' distances between mean P(yes) and share of relevant pairs, weighted
            by their pairs (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3).
        brier: mean squared distance of P(yes) from 1 for relevant pairs and 0 for others.
        bins: of equal width; empty ones are left out.
        threshold: an example of one; `None` where a half of the queries has no relevant candidate.
    """

    pairs: int
    relevant: float
    ece: float
    brier: float
    bins: list[Bin]
    threshold: Threshold | None


@dataclass(frozen=True, slots=True)
class MarginShift:
    """How margins move between a reference point and another one, over the same pairs.

    Attributes:
        reference: name of the system that is compared with.
        mean: of margin − reference margin; `deviation`: its standard deviation.
        relevant: the mean over relevant pairs; `others`: over the rest.
        correlation: Pearson's, of the two margins; `None` where one of them never changes.
        decisions_changed: share of pairs whose margin changes its sign: P(yes) crosses 0.5.
    """

    reference: str
    mean: float
    deviation: float
    relevant: float | None
    others: float | None
    correlation: float | None
    decisions_changed: float


def calibrate(qrels: Qrels, run: ScoredRun) -> Calibration | None:
    """The calibration of a reranker's run, whose scores are margins; `None` where it ranked nothing."""
    margins, labels = pairs_of(qrels, run, run)
    if not len(margins):
        return None
    scores = _scores(margins)
    bins = reliability(scores, labels)
    return Calibration(
        pairs=len(scores),
        relevant=float(labels.mean()),
        ece=expected_error(scores, labels),
        brier=float(((scores - labels) ** 2).mean()),
        bins=bins,
        threshold=threshold_of(qrels, run),
    )


def expected_error(scores: Margins, labels: Labels) -> float:
    """`Calibration.ece` of probabilities (n,) against relevance (n,)."""
    bins = reliability(scores, labels)
    return sum(bin_.pairs * abs(bin_.mean_score - bin_.relevant) for bin_ in bins) / len(scores)


def reliability(scores: Margins, labels: Labels, bins: int = BINS) -> list[Bin]:
    """The reliability curve: P(yes) (n,) and relevance (n,) in bins of equal width; 1.0 belongs to the last one."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    curve = []
    for place in np.unique(places).tolist():
        here = places == place
        mean, relevant = float(scores[here].mean()), float(labels[here].mean())
        curve.append(Bin(place / bins, (place + 1) / bins, int(here.sum()), mean, relevant))
    return curve


def threshold_of(qrels: Qrels, run: ScoredRun) -> Threshold | None:
    """See `Threshold`. The queries are halved by a seeded shuffle; recall is of the relevant candidates."""
    query_ids = sorted(run)
    random.Random(SEED).shuffle(query_ids)
    half = len(query_ids) // 2
    margins, labels = pairs_of(qrels, run, query_ids[:half])
    if not labels.any():
        return None
    least = _best_f1(margins, labels)
    margins, labels = pairs_of(qrels, run, query_ids[half:])
    if not labels.any():
        return None
    chosen = margins >= least
    hits = int((chosen & labels).sum())
    precision, recall = hits / max(int(chosen.sum()), 1), hits / int(labels.sum())
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return Threshold(score_of(least), precision, recall, f1, len(query_ids) - half)


def margin_shift(qrels: Qrels, reference: str, before: ScoredRun, after: ScoredRun) -> MarginShift | None:
    """How the margins of `after` differ from those of `before`; `None` where they share no pair."""
    found = {query_id: {hit.doc_id: hit.score for hit in ranked} for query_id, ranked in after.items()}
    pairs = [
        (hit.score, found[query_id][hit.doc_id], qrels[query_id].get(hit.doc_id, 0) >= 1)
        for query_id, ranked in before.items()
        for hit in ranked
        if hit.doc_id in found.get(query_id, ())
    ]
    if not pairs:
        return None
    old, new = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    labels, shift = np.array([pair[2] for pair in pairs]), new - old
    varies = old.std() > 0 and new.std() > 0
    return MarginShift(
        reference=reference,
        mean=float(shift.mean()),
        deviation=float(shift.std()),
        relevant=float(shift[labels].mean()) if labels.any() else None,
        others=float(shift[~labels].mean()) if not labels.all() else None,
        correlation=float(np.corrcoef(old, new)[0, 1]) if varies else None,
        decisions_changed=float(((old > 0) != (new > 0)).mean()),
    )


def pairs_of(qrels: Qrels, run: ScoredRun, query_ids: Collection[str] | Mapping[str, object]) -> tuple[Margins, Labels]:
    """Margins (n,) and whether the passage is relevant (n,), of all ranked pairs of these queries."""
    pairs = [(hit.score, qrels[query_id].get(hit.doc_id, 0) >= 1) for query_id in query_ids for hit in run[query_id]]
    return np.array([pair[0] for pair in pairs], np.float64), np.array([pair[1] for pair in pairs], np.bool_)


def _scores(margins: Margins) -> Margins:
    return np.array([score_of(margin) for margin in margins.tolist()])


def _best_f1(margins: Margins, labels: Labels) -> float:
    """The margin from which on pairs are to be chosen for the best F1; the highest of equal ones."""
    order = np.argsort(-margins, kind="stable")
    hits = np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + labels.sum())
    last_of_equal = np.append(np.diff(margins[order]) != 0, True)  # a threshold cannot part equal margins
    return float(margins[order][int(np.argmax(np.where(last_of_equal, f1, -1.0)))])
