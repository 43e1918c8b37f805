from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from kalm_cache import Client
from kalm_cache.client import Retries
from kalm_cache.client.retries import Outcome
from kalm_cache.errors import ServiceUnavailableError, UsageError

CALM = Retries(random=lambda: 0.0)
REQUEST = httpx.Request("GET", "http://service/")
BUSY = httpx.Response(429, json={})
FINE = httpx.Response(200, json={"status": "ok"})
LOST = httpx.ConnectError("refused", request=REQUEST)
LATE = httpx.ReadTimeout("", request=REQUEST)


def asking(seconds: str, status: int = 429) -> httpx.Response:
    return httpx.Response(status, json={}, headers={"retry-after": seconds})


def client_of(outcomes: Iterator[Outcome], retries: Retries) -> Client:
    """A client whose tries end so, one after the other."""

    def handle(_: httpx.Request) -> httpx.Response:
        outcome = next(outcomes)
        if isinstance(outcome, httpx.RequestError):
            raise outcome
        return outcome

    http = httpx.Client(base_url="http://service", transport=httpx.MockTransport(handle))
    return Client(http=http, retries=retries)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client wanted to sleep; it does not."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def test_waits_double_where_the_service_says_nothing() -> None:
    assert [CALM.wait_seconds(tries, BUSY) for tries in (1, 2, 3, 4)] == [0.25, 0.5, 1.0, None]


def test_waits_are_those_that_the_service_asks_for() -> None:
    assert CALM.wait_seconds(1, asking("3")) == 3.0
    assert CALM.wait_seconds(1, asking("0", 503)) == 0.0


def test_jitter_only_adds_and_stays_below_the_limit() -> None:
    eager = Retries(random=lambda: 1.0, max_wait_seconds=11.0)
    assert eager.wait_seconds(1, asking("4")) == 5.0
    assert eager.wait_seconds(1, asking("10")) == 11.0


def test_a_service_that_asks_for_a_longer_wait_than_allowed_is_not_asked_again() -> None:
    assert CALM.wait_seconds(1, asking("11")) is None


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500, 502, 504])
def test_other_failures_would_only_repeat(status: int) -> None:
    assert CALM.wait_seconds(1, httpx.Response(status)) is None


def test_lost_connections_are_tried_again_and_timeouts_are_not() -> None:
    assert CALM.wait_seconds(1, LOST) == 0.25
    assert CALM.wait_seconds(1, LATE) is None


def test_tries_end_with_the_first_answer(waits: list[float]) -> None:
    with client_of(iter([LOST, asking("2"), FINE]), CALM) as client:
        assert client.health() == {"status": "ok"}
    assert waits == [0.25, 2.0]


def test_tries_end_with_the_failure_of_the_last_one(waits: list[float]) -> None:
    with (
        client_of(iter([LOST, asking("5")]), Retries(attempts=1, random=lambda: 0.0)) as client,
        pytest.raises(ServiceUnavailableError, match="HTTP 429") as failure,
    ):
        client.health()
    assert waits == [0.25]
    assert failure.value.retry_after_seconds == 5.0


def test_fewer_than_no_retries_are_refused() -> None:
    with Client(retries=2) as client:
        assert client._retries == Retries(attempts=2)
    with pytest.raises(UsageError, match="retries is -1"):
        Client(retries=-1)
