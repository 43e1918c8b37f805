"""Curves and thresholds against known probabilities and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kalm_cache.calibration.fit import fit_sigmoid, thresholds
from kalm_cache.calibration.fitted import PrecisionThreshold
from kalm_cache.errors import UsageError


def drawn(temperature: float, offset: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and labels that are true with the probability of a known curve."""
    chance = np.random.default_rng(0)
    margins = chance.normal(-2, 4, count)
    return margins, chance.random(count) < 1 / (1 + np.exp(-(margins - offset) / temperature))


@pytest.mark.parametrize(("temperature", "offset"), [(1.0, 0.0), (2.5, 1.5), (0.4, -3.0)])
def test_the_curve_that_labels_were_drawn_from_is_found(temperature: float, offset: float) -> None:
    found = fit_sigmoid(*drawn(temperature, offset))
    assert found == pytest.approx((temperature, offset), rel=0.06, abs=0.06)


def test_probabilities_of_the_fit_sum_to_the_smoothed_labels() -> None:
    # where the likelihood is greatest, its derivative by the offset is 0: sum of probabilities = sum of targets
    margins, labels = drawn(2.0, 1.0, 500)
    temperature, offset = fit_sigmoid(margins, labels)
    relevant = int(labels.sum())
    targets = relevant * (relevant + 1) / (relevant + 2) + (500 - relevant) / (500 - relevant + 2)
    assert (1 / (1 + np.exp(-(margins - offset) / temperature))).sum() == pytest.approx(targets, abs=1e-4)


def test_margins_that_separate_the_labels_have_a_finite_curve() -> None:
    margins = np.array([-3.0] * 20 + [3.0] * 20)
    temperature, offset = fit_sigmoid(margins, margins > 0)
    assert offset == pytest.approx(0, abs=1e-6)
    # two values: the curve goes through both smoothed targets, 21/22 and 1/22, so that 3 / temperature = log(21)
    assert temperature == pytest.approx(3 / np.log(21), rel=1e-6)


def test_too_few_judgments_are_refused_with_their_counts() -> None:
    with pytest.raises(UsageError, match=r"9 relevant pairs and 91 others .* needs 10 of each"):
        fit_sigmoid(np.arange(100.0), np.arange(100) >= 91)


def test_margins_that_fall_with_relevance_have_no_curve() -> None:
    margins, labels = drawn(1.0, 0.0, 500)
    with pytest.raises(UsageError, match="no higher margins"):
        fit_sigmoid(-margins, labels)


def test_a_threshold_is_the_lowest_probability_with_the_precision() -> None:
    probabilities = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    labels = np.array([True, True, False, True, False])
    # precision from the top: 1, 1, 2/3, 3/4, 3/5; recall 1/3, 2/3, 2/3, 1, 1
    assert thresholds(probabilities, labels, (0.6, 0.7, 0.9)) == [
        PrecisionThreshold(0.6, 0.5, 1.0),
        PrecisionThreshold(0.7, 0.6, 1.0),
        PrecisionThreshold(0.9, 0.8, pytest.approx(2 / 3)),
    ]


def test_equal_probabilities_are_not_parted_and_what_is_not_reached_is_left_out() -> None:
    probabilities, labels = np.array([0.5, 0.5, 0.2, 0.1]), np.array([True, False, True, False])
    assert thresholds(probabilities, labels, (0.6, 0.99)) == [PrecisionThreshold(0.6, 0.2, 1.0)]
