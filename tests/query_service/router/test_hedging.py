"""Who is slow or fails is not waited for. Replicas are coroutines here, and events are their time."""

from __future__ import annotations

import asyncio

import pytest

from query_service.router.errors import RelayedError, ReplicaFailedError
from query_service.router.hedging import LEAST_KNOWN, UNKNOWN_SECONDS, HedgeDelay, first_answer


class Replicas:
    """What each does when it is asked: answer, fail, or stay silent until it is given up."""

    def __init__(self, **does: bytes | Exception | None) -> None:
        self.does, self.asked, self.given_up = does, list[str](), list[str]()
        self.hedges = 0

    async def ask(self, name: str) -> bytes:
        self.asked.append(name)
        answer = self.does[name]
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up.append(name)
            raise
        raise AssertionError("nobody sets it")

    def first(self, delay: HedgeDelay) -> bytes:
        def hedged() -> None:
            self.hedges += 1

        async def run() -> bytes:
            answer = await first_answer(list(self.does), self.ask, delay, hedged)
            await asyncio.sleep(0)  # who is given up learns of it
            return answer

        return asyncio.run(run())


def test_one_that_answers_is_the_only_one_asked() -> None:
    replicas = Replicas(a=b"1", b=b"2")
    assert replicas.first(HedgeDelay(60)) == b"1"
    assert (replicas.asked, replicas.hedges) == (["a"], 0)


def test_a_silent_one_is_given_up_for_the_next() -> None:
    replicas = Replicas(a=None, b=b"2")
    assert replicas.first(HedgeDelay(0.001)) == b"2"
    assert (replicas.given_up, replicas.hedges) == (["a"], 1)


def test_where_one_fails_the_next_is_asked_at_once() -> None:
    replicas = Replicas(a=ReplicaFailedError("gone"), b=b"2")
    assert replicas.first(HedgeDelay(60)) == b"2"
    assert replicas.hedges == 0


def test_the_last_failure_is_told_where_all_fail() -> None:
    with pytest.raises(ReplicaFailedError, match="second"):
        Replicas(a=ReplicaFailedError("first"), b=ReplicaFailedError("second")).first(HedgeDelay(60))


def test_a_refusal_is_an_answer() -> None:
    replicas = Replicas(a=RelayedError(422, "UsageError", "no", None, None), b=b"2")
    with pytest.raises(RelayedError, match="no"):
        replicas.first(HedgeDelay(60))
    assert replicas.asked == ["a"]


def test_the_delay_is_longer_than_nearly_all_answers_took() -> None:
    delay = HedgeDelay()
    for _ in range(LEAST_KNOWN - 1):
        delay.add(0.1)
    assert delay.seconds == UNKNOWN_SECONDS
    for _ in range(80):
        delay.add(0.1)
    delay.add(3.0)
    assert delay.seconds == 0.1
    for _ in range(10):
        delay.add(3.0)
    assert delay.seconds == 3.0
