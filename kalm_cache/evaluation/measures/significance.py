"""Whether two systems differ on the same queries: paired tests, their effect, and a correction for many comparisons.

The t-test is Student's of the queries' differences. The randomisation test flips their signs at random: Fisher's paired
test, as Smucker, Allan and Carterette recommend it for retrieval ("A Comparison of Statistical Significance Tests for
Information Retrieval Evaluation", CIKM 2007). Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979)
bounds the chance of one false finding in a family of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm_cache.errors import MissingExtraError, UsageError

FLIPS = 9_999
CONFIDENCE = 0.95
FLIPPED_TOGETHER = 1_000  # rows of signs held at once
SEED = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against a baseline, over the same queries.

    Attributes:
        baseline: its name.
        difference: mean of system − baseline.
        low: of the 95 % confidence interval of that mean, by Student's t.
        high: of it.
        effect: Cohen's d of paired samples: the mean difference by the standard deviation of the differences.
        p_t: two-sided, of the paired t-test.
        p_randomisation: two-sided, of the paired randomisation test.
        p_holm: `p_randomisation`, corrected by Holm for the family it was tested in.
        better: queries where the system is better; `worse`: where it is worse.
    """

    baseline: str
    difference: float
    low: float
    high: float
    effect: float
    p_t: float
    p_randomisation: float
    p_holm: float
    better: int
    worse: int


def load_scipy_stats() -> Any:
    """`scipy.stats`. Raises `MissingExtraError`."""
    try:
        from scipy import stats
    except ImportError as exc:
        raise MissingExtraError("scipy", "eval") from exc
    return stats


def compare(
    systems: Mapping[str, Sequence[float]], baseline: str, values: Sequence[float], flips: int = FLIPS
) -> dict[str, Comparison]:
    """Compare each system with the baseline; these comparisons are one family.

    Args:
        systems: name -> a measure of each query.
        baseline: the baseline's name.
        values: the baseline's measure of the same queries, in the same order.
        flips: random sign patterns; the smallest p is 1 / (flips + 1).

    Raises:
        UsageError: other numbers of queries, or fewer than 2.
        MissingExtraError: scipy is not installed.
    """
    if not systems:
        return {}
    if any(len(others) != len(values) for others in systems.values()) or len(values) < 2:
        raise UsageError("a paired comparison needs the same queries on both sides, 2 or more")
    differences = np.array([list(others) for others in systems.values()], np.float64).T - np.array(values)[:, None]
    randomisation = _randomisation(differences, flips)
    holm = holm_adjusted(randomisation)
    return {
        name: _comparison(baseline, differences[:, i], float(randomisation[i]), float(holm[i]))
        for i, name in enumerate(systems)
    }


def holm_adjusted(p_values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values: the i-th smallest of m times (m − i + 1), made to rise, at most 1."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _randomisation(differences: NDArray[np.float64], flips: int) -> NDArray[np.float64]:
    """(queries, comparisons) -> two-sided p of each comparison, of the same sign patterns for all."""
    generator = np.random.default_rng(SEED)
    observed = np.abs(differences.sum(axis=0))
    least = observed - 1e-12 * np.abs(differences).sum(axis=0)  # sums of other orders differ in their last bits
    extreme = np.zeros(differences.shape[1])
    for start in range(0, flips, FLIPPED_TOGETHER):
        rows = min(FLIPPED_TOGETHER, flips - start)
        signs = generator.integers(0, 2, (rows, len(differences)), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ differences) >= least).sum(axis=0)
    return np.asarray((extreme + 1) / (flips + 1), np.float64)


def _comparison(baseline: str, differences: NDArray[np.float64], p_randomisation: float, p_holm: float) -> Comparison:
    stats = load_scipy_stats()
    mean, deviation, count = float(differences.mean()), float(differences.std(ddof=1)), len(differences)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / count**0.5
    same = deviation == 0
    p_t = float(mean == 0) if same else float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Comparison(
        baseline=baseline,
        difference=mean,
        low=mean - half,
        high=mean + half,
        effect=0.0 if same else mean / deviation,
        p_t=p_t,
        p_randomisation=p_randomisation,
        p_holm=p_holm,
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
    )
