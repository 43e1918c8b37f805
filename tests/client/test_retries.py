from __future__ import annotations

import pytest

from kalm_cache.client.calls import health
from kalm_cache.client.conversation import converse
from kalm_cache.client.reply import NoReply, Reply
from kalm_cache.client.retries import Retries
from kalm_cache.errors import ServiceUnavailableError, UsageError

CALM = Retries(random=lambda: 0.0)
BUSY = Reply(429, b"{}", "http://service/", {})
FINE = Reply(200, b'{"status": "ok"}', "http://service/")
LOST = NoReply("refused", "http://service/", timed_out=False)
LATE = NoReply("ReadTimeout", "http://service/", timed_out=True)


def asking(seconds: str, status: int = 429) -> Reply:
    return Reply(status, b"{}", "http://service/", {"retry-after": seconds})


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
    assert CALM.wait_seconds(1, Reply(status, b"", "")) is None


def test_lost_connections_are_tried_again_and_timeouts_are_not() -> None:
    assert CALM.wait_seconds(1, LOST) == 0.25
    assert CALM.wait_seconds(1, LATE) is None


def test_a_conversation_ends_with_the_first_answer() -> None:
    talk = converse(health(), CALM)
    assert [next(talk), talk.send(LOST), talk.send(asking("2"))] == [0.0, 0.25, 2.0]
    with pytest.raises(StopIteration) as end:
        talk.send(FINE)
    assert end.value.value == {"status": "ok"}


def test_a_conversation_ends_with_the_failure_of_the_last_try() -> None:
    talk = converse(health(), Retries(attempts=1, random=lambda: 0.0))
    assert [next(talk), talk.send(LOST)] == [0.0, 0.25]
    with pytest.raises(ServiceUnavailableError, match="HTTP 429") as failure:
        talk.send(asking("5"))
    assert failure.value.retry_after_seconds == 5.0


def test_fewer_than_no_retries_are_refused() -> None:
    from kalm_cache.client.connection import retries_of

    assert retries_of(2) == Retries(attempts=2)
    with pytest.raises(UsageError, match="retries is -1"):
        retries_of(-1)
