"""One question, several services that could answer it: who is slow or fails is not waited for. Knows nothing of HTTP.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013 (hedged requests: the second is sent when the first takes
longer than most do).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from query_service.router.errors import ReplicaFailedError

SLOWEST_SHARE = 0.95  # of questions are answered faster than one that is asked once more
REMEMBERED, LEAST_KNOWN = 200, 20
LEAST_SECONDS, UNKNOWN_SECONDS = 0.01, 0.5
_Replica = TypeVar("_Replica")


class HedgeDelay:
    """How long one kind of question is waited for, before it is asked once more: longer than nearly all took lately."""

    def __init__(self, seconds: float | None = None) -> None:
        """`seconds`: always so long; `None` = as measured."""
        self._fixed, self._took = seconds, deque[float](maxlen=REMEMBERED)

    def add(self, seconds: float) -> None:
        """An answer took so long."""
        self._took.append(seconds)

    @property
    def seconds(self) -> float:
        """For the next question."""
        if self._fixed is not None:
            return self._fixed
        if len(self._took) < LEAST_KNOWN:
            return UNKNOWN_SECONDS
        return max(LEAST_SECONDS, sorted(self._took)[int(SLOWEST_SHARE * len(self._took))])


async def first_answer(
    replicas: Sequence[_Replica],
    ask: Callable[[_Replica], Awaitable[bytes]],
    delay: HedgeDelay,
    on_hedge: Callable[[], None] = lambda: None,
) -> bytes:
    """The first answer that one of the replicas gives: the next is asked where one fails, and where one is slow.

    Those that are still at it then are given up.

    Args:
        replicas: in the order in which they are asked.
        ask: one of them.
        delay: until the next is asked; learns from the answers.
        on_hedge: called when one is asked because another is slow.

    Raises:
        ReplicaFailedError: all have failed.
        Exception: any other that `ask` raised.
    """
    loop, waiting = asyncio.get_running_loop(), list(replicas)
    if len(waiting) == 1:
        return await ask(waiting[0])
    began: dict[asyncio.Future[bytes], float] = {}
    failure: ReplicaFailedError | None = None
    try:
        while waiting or began:
            if waiting:
                began[asyncio.ensure_future(ask(waiting.pop(0)))] = loop.time()
            done, _ = await asyncio.wait(
                began, timeout=delay.seconds if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for answer in done:
                started = began.pop(answer)
                try:
                    content = answer.result()
                except ReplicaFailedError as exc:
                    failure = exc
                else:
                    delay.add(loop.time() - started)
                    return content
            if not done:
                on_hedge()
        raise failure or ReplicaFailedError("nobody to ask")
    finally:
        for answer in began:
            answer.cancel()
