"""Several processes behind one socket: started, watched, restarted, stopped. Knows nothing of what they serve.

The parent loads once what the workers share, the weights, and forks; each of them maps its files itself. The parent
computes nothing: OpenMP's threads do not survive a fork, and it must not have any.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TypeVar

from kalm_cache.errors import KalmCacheError
from kalm_cache.process.stopping import SIGNALS, signals_call
from query_service.middleware.metrics import count_restart, forget_worker, share_between_workers

HASTY_SECONDS = 5.0  # a worker that ends sooner than this has not served
FIRST_PAUSE_SECONDS = 0.1  # before the next start; doubled for each that ended hastily
LONGEST_PAUSE_SECONDS = 30.0
PATIENCE_SECONDS = 15.0  # where no worker lives, and none has served for so long, the service gives up
LOOK_SECONDS = 0.02
PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")
logger = logging.getLogger(__name__)


def run_workers(
    count: int, prepare: Callable[[], _T], serve: Callable[[int, _T], None], stop_listening: Callable[[], None]
) -> None:
    """Run `count` processes until SIGTERM or SIGINT, and wait until they have drained.

    A worker that ends is started again, after a pause that grows while they end as soon as they start; those that serve
    go on. An index that is away for a moment is so waited for.

    Args:
        count: of workers.
        prepare: runs in the parent, before it forks: loads what the workers share.
        serve: runs in each worker, until it gets SIGTERM; is given its number, from 0, which one that replaces it has,
            too, and what `prepare` returned.
        stop_listening: closes the parent's side of the socket, before the workers are told to stop.

    Raises:
        KalmCacheError: of `prepare`, or no worker can be kept alive.
    """
    import torch

    torch.set_num_threads(1)
    shared = prepare()
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every object's page, and so copy it
    with tempfile.TemporaryDirectory(prefix="kalm-cache-metrics-") as metrics:
        share_between_workers(Path(metrics))
        _Supervisor(count, lambda number: _work(count, lambda: serve(number, shared)), stop_listening).run()


class _Supervisor:
    def __init__(self, count: int, work: Callable[[int], int], stop_listening: Callable[[], None]) -> None:
        self._count, self._work, self._stop_listening = count, work, stop_listening
        self._started: dict[int, tuple[int, float]] = {}  # pid -> worker's number, and when
        self._due: dict[int, float] = {}  # number of a worker that is to start -> when
        self._hasty = 0  # in a row
        self._served_at = time.monotonic()
        self._stopping = self._gave_up = False

    def run(self) -> None:
        with signals_call(self._stop):
            try:
                for number in range(self._count):
                    self._start(number)
                while self._started or self._due:
                    self._start_due()
                    self._wait()
            finally:
                self._signal_all(signal.SIGKILL)
        if self._gave_up:
            raise KalmCacheError(f"no worker could be kept alive for {PATIENCE_SECONDS:.0f} s; the log says why")

    def _start(self, number: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        with _signals_wait():  # one that comes meanwhile finds the worker counted, or in the worker its own handlers
            if self._stopping:
                return
            pid = os.fork()
            if pid:
                self._started[pid] = number, time.monotonic()
                return
            _default_signals()
        status = 1
        try:
            status = self._work(number)
        finally:
            os._exit(status)  # what the parent has begun is the parent's to end

    def _start_due(self) -> None:
        now = time.monotonic()
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            count_restart()
            self._start(number)

    def _wait(self) -> None:
        """Until a worker ends, or a moment, where one is to be started."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG if self._due else 0)
        except ChildProcessError:
            pid, status = 0, 0
        if pid:
            self._note_end(pid, os.waitstatus_to_exitcode(status))
        else:
            time.sleep(LOOK_SECONDS)

    def _note_end(self, pid: int, status: int) -> None:
        if pid not in self._started:  # as the container's first process we inherit orphans
            return
        number, started = self._started.pop(pid)
        forget_worker(pid)
        if self._stopping:
            return
        now = time.monotonic()
        if now - started >= HASTY_SECONDS:
            self._hasty, self._served_at = 0, now
        self._hasty += 1
        if not self._started and now - self._served_at > PATIENCE_SECONDS:
            logger.error("worker %d ended with status %d; none lives, and none could be started", pid, status)
            self._gave_up = True
            self._due.clear()
            return
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(self._hasty - 1, 20), LONGEST_PAUSE_SECONDS)
        self._due[number] = now + pause
        logger.error(
            "worker %d ended with status %d; %d others live, and another one starts in %.1f s",
            pid, status, len(self._started), pause,
        )  # fmt: skip

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        self._due.clear()
        self._stop_listening()
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        for pid in self._started:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def _signals_wait() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's reach all: the parent decides
        signal.signal(number, signal.SIG_IGN)


def _work(workers: int, serve: Callable[[], None]) -> int:
    import torch

    _end_with_the_parent()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        serve()
    except KalmCacheError as exc:
        logger.error("%s", exc)
        return exc.exit_code
    return 0


def _end_with_the_parent() -> None:
    """Get SIGTERM when the parent is killed: workers without it would hold the port for ever."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
