"""What replicas of a shard say together, while a generation spreads over them."""

from __future__ import annotations

from typing import Any

import pytest

from query_service.on_ray.transport import joint_status
from query_service.router.messages import Status

NO_MODEL: Any = None


def status(*generations: str, damaged: int = 0, ready: bool = True) -> Status:
    return Status([3], 4, 16, list(generations), 9, damaged, ["bm25"], False, NO_MODEL, ready)


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ([["1"]], ["1"]),
        ([["2", "1"], ["2", "1"]], ["2", "1"]),
        ([["2", "1"], ["1"]], ["1"]),  # one has not gone on yet
        ([["2", "1"], ["2"]], ["2"]),  # one was started since
        ([["2", "1"], ["1"], ["2"]], ["2", "1"]),  # nobody's alone: who does not have it says so
        ([["1"], ["2"]], ["2", "1"]),
    ],
)
def test_replicas_have_what_most_of_them_have(said: list[list[str]], together: list[str]) -> None:
    assert joint_status([status(*generations) for generations in said]).generations == together


def test_replicas_are_ready_when_one_is_and_count_what_was_damaged_together() -> None:
    joint = joint_status([status("1", damaged=1, ready=False), status("1", damaged=2)])
    assert (joint.ready, joint.damaged_reads) == (True, 3)
