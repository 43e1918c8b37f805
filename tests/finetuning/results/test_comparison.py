from __future__ import annotations

import pytest

from kalm_cache.finetuning.data.example import Item
from kalm_cache.finetuning.results.comparison import Comparison, Point
from kalm_cache.finetuning.results.held_out import HeldOutQuery, mean_ndcg, ndcg_of
from kalm_cache.model.prompts import Prompt, PromptTokens


def query(*grades: int) -> HeldOutQuery:
    items = [Item(f"d{n}", is_id=True) for n in range(len(grades))]
    return HeldOutQuery(PromptTokens([1], False, Prompt("q")), items, dict(zip(items, grades, strict=True)))


def point(chunk_size: int, before: float, after: float, p: float = 0.5) -> Point:
    return Point(chunk_size, before, after, -0.1, 0.1, p, 1, 2, (1.0, 2.0), None)


def test_ndcg_is_that_of_the_candidates_by_falling_margin() -> None:
    # the relevant one at rank 2: 1 / log2(3) of the best; equal margins keep the candidates' order
    values = ndcg_of([query(0, 1, 0), query(1, 0)], [[2.0, 1.0, 0.0], [1.0, 1.0]])
    assert values == pytest.approx([0.63093, 1.0], abs=1e-5)


def test_a_relevant_passage_that_is_no_candidate_stays_missed() -> None:
    missed = query(1, 0)
    missed.grades[Item("elsewhere", is_id=True)] = 1
    assert ndcg_of([missed], [[1.0, 0.0]]) == pytest.approx([1 / 1.63093], abs=1e-5)


def test_watched_queries_take_turns_at_the_chunk_sizes() -> None:
    asked: list[int] = []

    def margins(of: HeldOutQuery, chunk_size: int) -> list[float]:
        asked.append(chunk_size)
        return [0.0] * len(of.candidates)

    mean_ndcg([query(1, 0)] * 5, (2, 8), margins)
    assert asked == [2, 8, 2, 8, 2]


def test_a_comparison_says_when_it_is_worse() -> None:
    worse = Comparison(10, 50, [point(1, 0.5, 0.52), point(8, 0.5, 0.45, 0.01)])
    assert worse.is_worse
    assert worse.difference == pytest.approx(-0.015)
    assert "this is WORSE than before" in worse.lines()[-1]
    assert "not significant" in worse.lines()[1]
    assert "not significant" not in worse.lines()[2]
    assert "mean margin of relevant passages +1.00 → +2.00, of others –" in worse.lines()[1]
    better = Comparison(10, 50, [point(1, 0.5, 0.52)])
    assert not better.is_worse
    assert "better" in better.lines()[-1]
    assert better.to_json()["difference"] == pytest.approx(0.02)
