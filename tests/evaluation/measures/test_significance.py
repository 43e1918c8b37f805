from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from kalm_cache.errors import UsageError
from kalm_cache.evaluation.measures.significance import compare, holm_adjusted

BASE = [0.1, 0.5, 0.4, 0.9, 0.0, 0.3, 0.7, 0.2]
BETTER = [0.3, 0.5, 0.9, 0.8, 0.4, 0.6, 1.0, 0.5]


def test_the_t_test_and_its_interval_are_those_of_scipy() -> None:
    found = compare({"better": BETTER}, "base", BASE)["better"]
    expected = stats.ttest_rel(BETTER, BASE)
    interval = expected.confidence_interval(0.95)
    assert found.p_t == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.difference == pytest.approx(np.mean(BETTER) - np.mean(BASE))
    assert (found.better, found.worse) == (6, 1)


def test_the_effect_is_the_mean_difference_by_its_standard_deviation() -> None:
    # differences 1, 3: mean 2, standard deviation sqrt(2)
    assert compare({"s": [1.0, 3.0]}, "b", [0.0, 0.0])["s"].effect == pytest.approx(2**0.5)


def test_the_randomisation_test_is_near_the_exact_share_of_all_sign_patterns() -> None:
    differences = np.array(BETTER) - np.array(BASE)
    signs = np.array(list(itertools.product([-1, 1], repeat=len(differences))))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert compare({"s": BETTER}, "b", BASE)["s"].p_randomisation == pytest.approx(exact, abs=0.01)


def test_systems_that_never_differ_are_not_significant() -> None:
    found = compare({"same": BASE}, "base", BASE)["same"]
    assert (found.p_t, found.p_randomisation, found.p_holm, found.effect) == (1, 1, 1, 0)


def test_a_family_of_comparisons_is_corrected_by_holm() -> None:
    # sorted .01 .02 .04 times 3, 2, 1 = .03 .04 .04
    assert holm_adjusted([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm_adjusted([0.6, 0.7]).tolist() == [1.0, 1.0]
    alone = compare({"s": BETTER}, "b", BASE)["s"]
    both = compare({"s": BETTER, "same": BASE}, "b", BASE)["s"]
    assert both.p_randomisation == alone.p_randomisation
    assert both.p_holm == pytest.approx(2 * alone.p_holm)


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(UsageError, match="the same queries on both sides, 2 or more"):
        compare({"s": [1.0]}, "b", BASE)
    with pytest.raises(UsageError, match="2 or more"):
        compare({"s": [1.0]}, "b", [1.0])
