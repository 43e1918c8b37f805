"""Margins and judgments → a curve's temperature and offset, and thresholds. Pure arithmetic over arrays.

n: pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kalm_cache.calibration.fitted import PrecisionThreshold
from kalm_cache.errors import UsageError

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LEAST_OF_A_KIND = 10  # relevant pairs, and others: fewer say nothing of a curve
_STEPS, _CLOSE = 100, 1e-10


def fit_sigmoid(margins: Floats, labels: Labels) -> tuple[float, float]:
    """Temperature and offset of the sigmoid under which the labels are most likely.

    Args:
        margins: (n,), finite.
        labels: (n,), whether the pair is relevant.

    Raises:
        UsageError: too few relevant pairs or others, or relevant ones have no higher margins.

    Source: Platt, "Probabilistic Outputs for Support Vector Machines", 1999, with its smoothed targets, which keep the
    curve finite where margins separate the labels; by Newton's method with halved steps, as in Lin, Lin and Weng, "A
    Note on Platt's Probabilistic Outputs for Support Vector Machines", 2007.
    """
    relevant = int(labels.sum())
    others = len(labels) - relevant
    if min(relevant, others) < LEAST_OF_A_KIND:
        raise UsageError(
            f"{relevant} relevant pairs and {others} others were found; a curve needs {LEAST_OF_A_KIND} of each: "
            "give more judgments"
        )
    center, spread = float(margins.mean()), float(margins.std()) or 1.0
    x = np.stack([(margins - center) / spread, np.ones_like(margins)], axis=1)  # (n, 2)
    targets = np.where(labels, (relevant + 1) / (relevant + 2), 1 / (others + 2))  # (n,)
    weights = np.array([0.0, np.log((relevant + 1) / (others + 1))])
    loss = _loss(x @ weights, targets)
    for _ in range(_STEPS):
        probabilities = 1 / (1 + np.exp(-(x @ weights)))
        gradient = x.T @ (probabilities - targets)
        curvature = (x.T * (probabilities * (1 - probabilities))) @ x + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while (new := _loss(x @ (weights - size * step), targets)) > loss and size > _CLOSE:
            size /= 2
        weights, gained, loss = weights - size * step, loss - new, new
        if gained < _CLOSE * max(loss, 1.0):
            break
    slope = float(weights[0]) / spread
    if slope <= 0:
        raise UsageError("relevant passages have no higher margins than others: there is no curve through them")
    return 1 / slope, center - float(weights[1]) / slope


def thresholds(probabilities: Floats, labels: Labels, wanted: Sequence[float] = PRECISIONS) -> list[PrecisionThreshold]:
    """For each precision that is reached, the lowest probability from which on it is.

    Args:
        probabilities: (n,).
        labels: (n,), whether the pair is relevant.
        wanted: precisions.
    """
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(labels[order])  # (n,), among the first ones
    precision = hits / np.arange(1, len(order) + 1)
    last_of_equal = np.append(np.diff(probabilities[order]) != 0, True)  # a threshold cannot part equal ones
    found = []
    for least in wanted:
        places = np.flatnonzero(last_of_equal & (precision >= least))
        if len(places) and hits[places[-1]]:
            place = places[-1]
            recall = float(hits[place] / labels.sum())
            found.append(PrecisionThreshold(least, float(probabilities[order][place]), recall))
    return found


def _loss(logits: Floats, targets: Floats) -> float:
    """Cross-entropy: log(1 + e^z) − t·z, summed."""
    return float((np.logaddexp(0, logits) - targets * logits).sum())
