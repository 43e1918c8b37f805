"""Score interpolation: the formula, and searches whose order uses it."""

from __future__ import annotations

import numpy as np
import pytest

from kalm_cache import PassageIndex
from kalm_cache.errors import UsageError
from kalm_cache.first_stage import z_scores
from kalm_cache.scoring.ranking import SearchResult, interpolate
from tests.index.asked import QUERIES


def search(index: PassageIndex, weight: float) -> list[SearchResult]:
    return index.search(QUERIES[0], top_n=None, first_stage_weight=weight).results


def test_an_interpolated_score_is_the_margin_and_the_weight_times_the_z_score() -> None:
    # scores 0, 0, 3 have mean 1 and standard deviation √2
    scores = z_scores(np.array([0.0, 0.0, 3.0], np.float32))
    values = interpolate([1.0, 0.0, -1.0], scores.tolist(), 2.0)
    assert values == pytest.approx([1 - 2**0.5, -(2**0.5), 2 * 2**0.5 - 1])


def test_without_a_weight_the_margins_decide_alone(index: PassageIndex) -> None:
    margins = [one.margin for one in search(index, 0.0)]
    assert margins == sorted(margins, reverse=True)


def test_a_very_large_weight_leaves_the_first_stages_order(index: PassageIndex) -> None:
    ranks = [one.first_stage_rank for one in search(index, 1e9)]
    assert ranks == sorted(ranks, key=lambda rank: rank or 0)
    assert len(ranks) > 3


def test_a_weight_changes_the_order_and_no_score(index: PassageIndex) -> None:
    alone, together = search(index, 0.0), search(index, 3.0)
    assert {one.doc_id: (one.score, one.margin) for one in together} == {
        one.doc_id: (one.score, one.margin) for one in alone
    }
    found = sorted(together, key=lambda one: one.first_stage_rank or 0)
    standard = z_scores(np.array([one.first_stage_score for one in found], np.float32))
    expected = {one.doc_id: one.margin + 3.0 * z for one, z in zip(found, standard, strict=True)}
    assert [one.doc_id for one in together] == sorted(expected, key=lambda doc_id: -expected[doc_id])
    assert [one.rank for one in together] == list(range(1, len(together) + 1))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_of_0_or_more_is_refused(index: PassageIndex, weight: float) -> None:
    with pytest.raises(UsageError, match="first_stage_weight"):
        search(index, weight)


@pytest.mark.filterwarnings("error")
def test_an_empty_list_has_no_standard_scores() -> None:
    assert z_scores(np.empty(0, np.float32)).shape == (0,)
