from __future__ import annotations

import httpx
import pytest
import torch

from kalm_cache.scoring.cached_passages import LookUp
from kalm_cache.scoring.pooling import PooledPassage
from query_service.engine.time_budget import BudgetPlan, fit, shortened

TOKENS = [64, 32, 16, 8]  # 30 pooled states of four tokens, 15 of eight, 8 of sixteen (the last passage has one)


def cost_ms(count: int, pooled: int) -> float:
    return 10.0 * count + pooled


def plan(budget_ms: float, *, coarsest: int = 32) -> BudgetPlan:
    return fit(TOKENS, 4, budget_ms, cost_ms, coarsest=coarsest)


@pytest.mark.parametrize(
    ("budget_ms", "expected"),
    [
        (70, BudgetPlan(4, 4, 70, False)),  # 4 · 10 + 16 + 8 + 4 + 2
        (69, BudgetPlan(4, 8, 55, True)),  # 4 · 10 + 8 + 4 + 2 + 1
        (54, BudgetPlan(4, 16, 48, True)),  # 4 · 10 + 4 + 2 + 1 + 1
        (47, BudgetPlan(2, 4, 44, True)),  # three cost 30 + 28
        (44, BudgetPlan(2, 4, 44, True)),
        (43, BudgetPlan(1, 4, 26, True)),
        (0, BudgetPlan(1, 4, 26, True)),
        (-5, BudgetPlan(1, 4, 26, True)),
    ],
)
def test_a_budget_takes_a_coarser_ratio_first_and_then_fewer_candidates(budget_ms: float, expected: BudgetPlan) -> None:
    assert plan(budget_ms) == expected


def test_no_ratio_is_coarser_than_allowed() -> None:
    assert plan(69, coarsest=4) == BudgetPlan(3, 4, 58, True)


def test_nothing_found_costs_nothing() -> None:
    assert fit([], 4, 0, cost_ms, coarsest=32) == BudgetPlan(0, 4, 0, False)


def test_a_plan_keeps_the_first_candidates_and_averages_their_states() -> None:
    states = torch.arange(6.0).reshape(6, 1)
    hits = {"a": PooledPassage(8, False, states[:2]), "c": PooledPassage(14, False, states[2:])}
    found = LookUp(["a", "damaged", "c", "d"], 4, (), hits | {"d": hits["a"]}, {}, [])
    left = shortened(found, BudgetPlan(2, 8, 0.0, True))
    assert (list(left.ids), left.chunk_size, list(left.hits)) == (["a", "damaged", "c"], 8, ["a", "c"])
    assert left.hits["a"].states.tolist() == [[0.5]]
    # tokens 0-7 and 8-13: the last stored state is of two tokens
    assert left.hits["c"].states.tolist() == [[2.5], [pytest.approx((4 * 4 + 2 * 5) / 6)]]


def test_a_search_with_a_budget_says_what_it_allowed(service: httpx.Client) -> None:
    body = {"query": "Where do bees dance?", "k": 18, "top_n": 0}
    unhurried = service.post("/search", json=body | {"budget_ms": 60_000}).json()
    assert unhurried["plan"]["reduced"] is False
    assert (unhurried["plan"]["k"], unhurried["plan"]["chunk_size"]) == (18, 4)
    hurried = service.post("/search", json=body | {"budget_ms": 0.001}).json()
    assert (hurried["plan"]["reduced"], hurried["plan"]["k"]) == (True, 1)
    assert len(hurried["results"]) == 1
    assert hurried["results"][0]["first_stage_rank"] == 1
    assert service.post("/search", json=body).json()["plan"] is None
