"""A probability by hand, and what is refused where nothing was fitted."""

from __future__ import annotations

import math

import pytest

from kalm_cache.calibration import sigmoid
from kalm_cache.calibration.fitted import fitted_weight, require_curve
from kalm_cache.errors import UsageError
from tests.calibrated import calibration, curve


def test_a_probability_is_the_sigmoid_of_the_margin_behind_the_offset_over_the_temperature() -> None:
    assert curve(4, temperature=2.0, offset=1.0).probability(1.0) == 0.5
    assert curve(4, temperature=2.0, offset=1.0).probability(5.0) == pytest.approx(1 / (1 + math.exp(-2)))
    assert (sigmoid(1000.0), sigmoid(-1000.0)) == (1.0, 0.0)


def test_a_chunk_size_that_was_not_fitted_is_refused_with_those_that_were() -> None:
    fitted = calibration(curve(4), curve(8))
    assert require_curve(fitted, 8, "min_probability").chunk_size == 8
    with pytest.raises(
        UsageError, match=r"min_probability: .* at chunk size 16 \(at: 4, 8\); run kalm-cache calibrate"
    ):
        require_curve(fitted, 16, "min_probability")
    with pytest.raises(UsageError, match=r"\(at: none\)"):
        require_curve(None, 4, "min_probability")


def test_a_weight_is_of_the_first_stage_that_was_judged() -> None:
    fitted = calibration(curve(4, weight=2.0), first_stage="fused")
    assert fitted_weight(fitted, 4, "fused") == fitted_weight(fitted, 4, None) == 2.0
    with pytest.raises(UsageError, match="fitted for the first stage fused, and bm25 was asked for"):
        fitted_weight(fitted, 4, "bm25")
    with pytest.raises(UsageError, match="pairs were judged"):
        fitted_weight(calibration(curve(4, weight=None)), 4, "fused")
