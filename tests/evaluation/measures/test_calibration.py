from __future__ import annotations

from math import log

import numpy as np
import pytest

from kalm_cache.evaluation.collections.trec import Scored
from kalm_cache.evaluation.measures.calibration import calibrate, margin_shift, reliability, threshold_of


def margin(score: float) -> float:
    return log(score / (1 - score))


def run_of(scores: dict[str, dict[str, float]]) -> dict[str, list[Scored]]:
    return {q: [Scored(d, margin(score)) for d, score in some.items()] for q, some in scores.items()}


def test_the_error_and_the_brier_score_are_those_computed_by_hand() -> None:
    # bins: [.1, .2) holds .15 and .15, one relevant: |.15 - .5| = .35; [.9, 1] holds .95, relevant: .05
    # ECE = (2 * .35 + 1 * .05) / 3 = .25; Brier = (.85² + .15² + .05²) / 3 = .2491667
    found = calibrate({"q": {"a": 2, "c": 1}}, run_of({"q": {"c": 0.95, "a": 0.15, "b": 0.15}}))
    assert found is not None
    assert (found.pairs, found.relevant) == (3, pytest.approx(2 / 3))
    assert (found.ece, found.brier) == (pytest.approx(0.25), pytest.approx(0.2491667, abs=1e-6))
    assert [(one.pairs, one.relevant) for one in found.bins] == [(2, 0.5), (1, 1.0)]


def test_a_score_of_one_lies_in_the_last_bin() -> None:
    (last,) = reliability(np.array([1.0]), np.array([True]))
    assert (last.low, last.high, last.pairs) == (0.9, 1.0, 1)


def test_a_threshold_is_chosen_on_half_of_the_queries_and_measured_on_the_other() -> None:
    scores = {f"q{n}": {"good": 0.8, "bad": 0.3, "worse": 0.1} for n in range(10)}
    found = threshold_of({query: {"good": 1} for query in scores}, run_of(scores))
    assert found is not None
    assert (found.precision, found.recall, found.f1, found.queries) == (1, 1, 1, 5)
    assert found.score == pytest.approx(0.8)


def test_without_a_relevant_candidate_there_is_no_threshold() -> None:
    assert threshold_of({"q1": {}, "q2": {}}, run_of({"q1": {"a": 0.5}, "q2": {"a": 0.5}})) is None


def test_the_shift_of_margins_is_told_apart_by_relevance() -> None:
    before = {"q": [Scored("a", 2.0), Scored("b", 1.0), Scored("gone", 9.0)]}
    after = {"q": [Scored("a", 1.0), Scored("b", -1.0)]}
    found = margin_shift({"q": {"a": 1}}, "r=1", before, after)
    assert found is not None
    assert (found.mean, found.relevant, found.others) == (-1.5, -1.0, -2.0)
    assert (found.deviation, found.correlation, found.decisions_changed) == (0.5, pytest.approx(1.0), 0.5)
