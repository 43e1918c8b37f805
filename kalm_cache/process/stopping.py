"""SIGTERM, SIGHUP and Ctrl-C: each ends the process in order, and none is lost. Knows nothing of what is running.

The first one raises `Stopped` in the main thread, which unwinds as Ctrl-C does in Python. Libraries may swallow what is
raised inside them, so that long work also asks, between two steps. The second one ends the process at once: what is on
disk is whole at any time. A handler is needed at all because process 1, as in a container, ignores what has none.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SECONDS = 1.0  # `timeout`, for one, sends what it sends twice: to the process, and to its group
_received: list[tuple[int, float]] = []  # number, when


class Stopped(KeyboardInterrupt):
    """The process was asked to stop, by the signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code_of(stopped: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
    if isinstance(stopped, Stopped):
        return 128 + stopped.number
    return 128 + (_received[0][0] if _received else signal.SIGINT)  # Ray raises one of its own in the place of ours


def catch_signals() -> None:
    """From now on a signal stops this process in order; one that whoever started it ignores (nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def stop_if_asked() -> None:
    """Raise `Stopped` where a signal came, and what it raised was swallowed. Called between two steps of long work."""
    if _received:
        raise Stopped(_received[0][0])


def is_stopping() -> bool:
    """Whether a signal came."""
    return bool(_received)


@contextmanager
def signals_call(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let signals call `handler` instead; SIGHUP only where it is not ignored."""
    hang_up_is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if number != signal.SIGHUP or not hang_up_is_ignored]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _stop(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _received:
        first, since = _received[0]
        if number != first or now - since > SAME_SECONDS:
            os._exit(128 + number)
        return
    _received.append((number, now))
    raise Stopped(number)
