from __future__ import annotations

import pytest

from query_service.answering.errors import BusyError
from query_service.engine.admission import Admission
from query_service.engine.cost import CostModel
from query_service.engine.engine import Engine


def test_no_more_than_the_limit_are_let_in_and_who_leaves_makes_room() -> None:
    admission = Admission(1, Engine(CostModel()))
    with admission.enter(1000):
        assert admission.under_way == 1
        with pytest.raises(BusyError, match="1 requests are under way") as refusal, admission.enter(1000):
            pass
        assert refusal.value.retry_after_seconds == 1
    with admission.enter(1000):
        assert admission.under_way == 1


def test_a_request_that_fails_makes_room_too() -> None:
    admission = Admission(1, Engine(CostModel()))
    with pytest.raises(ZeroDivisionError), admission.enter(1000):
        _ = 1 / 0
    assert admission.under_way == 0
