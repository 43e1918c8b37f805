from __future__ import annotations

import pytest

from query_service.engine.cost import CostModel


def test_one_batch_that_stalled_does_not_make_the_service_refuse_what_it_can_do() -> None:
    cost = CostModel()
    cost.learn(100, 50)
    cost.learn(100, 50_000)
    assert cost.ms(100) == pytest.approx(65)  # as if it had taken four times the average


def test_a_machine_that_is_slower_from_now_on_is_followed() -> None:
    cost = CostModel()
    cost.learn(100, 50)
    for _ in range(100):
        cost.learn(100, 500)
    assert cost.ms(100) == pytest.approx(500, rel=0.01)
