"""One call from its first try to its value: the part of both clients that is neither sockets nor sleeping."""

from __future__ import annotations

from collections.abc import Generator
from itertools import count
from typing import TypeVar

from kalm_cache.client.calls import Call
from kalm_cache.client.failures import failure_without_reply
from kalm_cache.client.reply import NoReply, Reply
from kalm_cache.client.retries import Retries
from kalm_cache.errors import DeadlineExceededError, ServiceUnavailableError

NO_RETRIES = Retries(attempts=0)
NOT_READY = (ServiceUnavailableError, DeadlineExceededError)  # to `ready` these are an answer: no
_Value = TypeVar("_Value")


def converse(call: Call[_Value], retries: Retries) -> Generator[float, Reply | NoReply, _Value]:
    """Yields the seconds to wait before each try, is sent how it ended, and returns the call's value.

    Raises:
        KalmCacheError: what the last try came to.
    """
    outcome = yield 0.0
    for tries in count(1):
        wait_seconds = retries.wait_seconds(tries, outcome)
        if wait_seconds is None:
            break
        outcome = yield wait_seconds
    if isinstance(outcome, NoReply):
        raise failure_without_reply(outcome)
    return call.finish(outcome)
