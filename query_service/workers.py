"""Several processes behind one socket: started, watched, restarted, stopped. Knows nothing of what they serve.

The parent loads the weights once and forks, so that the workers share their memory, and the index's files are mapped by
all of them. The parent itself computes nothing: OpenMP's threads do not survive a fork, and it must not have any.
"""

from __future__ import annotations

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

from kalm_cache.errors import KalmCacheError
from kalm_cache.index.from_settings import open_index
from kalm_cache.index.passage_index import PassageIndex
from kalm_cache.settings import Settings
from kalm_cache.stopping import SIGNALS, signals_call
from query_service.middleware.metrics import forget_worker, share_between_workers

HASTY_SECONDS = 5.0  # a worker that ends sooner than this has not served
HASTY_ENDS = 5  # as many of these in a row, and the service gives up
logger = logging.getLogger(__name__)


def run_workers(folder: Path, settings: Settings, serve: Callable[[PassageIndex], None]) -> None:
    """Run `settings.workers` processes until SIGTERM or SIGINT, and wait until they have drained.

    Args:
        folder: of the index.
        settings: `workers`, and how to open the index.
        serve: runs in each worker, until it gets SIGTERM; is given a closed index whose weights it can use.

    Raises:
        KalmCacheError: the index cannot be opened, or the workers end as soon as they start.
    """
    import torch

    torch.set_num_threads(1)
    with open_index(folder, settings) as reuse_from:
        pass  # closed: each worker maps the files itself
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every object's page, and so copy it
    with tempfile.TemporaryDirectory(prefix="kalm-cache-metrics-") as metrics:
        share_between_workers(Path(metrics))
        _Supervisor(settings.workers, lambda: _work(settings.workers, lambda: serve(reuse_from))).run()


class _Supervisor:
    def __init__(self, count: int, work: Callable[[], int]) -> None:
        self._count, self._work = count, work
        self._started: dict[int, float] = {}  # pid -> when
        self._stopping = False
        self._hasty = 0

    def run(self) -> None:
        with signals_call(self._stop):
            try:
                for _ in range(self._count):
                    self._start()
                while self._started:
                    self._wait()
            finally:
                self._signal_all(signal.SIGKILL)
        if self._hasty >= HASTY_ENDS:
            raise KalmCacheError(f"{self._hasty} workers in a row ended within {HASTY_SECONDS:.0f} s; the log says why")

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        with _signals_wait():  # one that comes meanwhile finds the worker counted, or in the worker its own handlers
            if self._stopping:
                return
            pid = os.fork()
            if pid:
                self._started[pid] = time.monotonic()
                return
            _default_signals()
        status = 1
        try:
            status = self._work()
        finally:
            os._exit(status)  # what the parent has begun is the parent's to end

    def _wait(self) -> None:
        try:
            pid, status = os.wait()
        except InterruptedError:
            return
        started = self._started.pop(pid, None)
        if started is None:
            return
        forget_worker(pid)
        if self._stopping:
            return
        self._hasty = self._hasty + 1 if time.monotonic() - started < HASTY_SECONDS else 0
        logger.error("worker %d ended with status %d", pid, os.waitstatus_to_exitcode(status))
        if self._hasty >= HASTY_ENDS:
            self._stop(signal.SIGTERM, None)
        else:
            self._start()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
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

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    try:
        serve()
    except KalmCacheError as exc:
        logger.error("%s", exc)
        return exc.exit_code
    return 0
