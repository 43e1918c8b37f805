"""A connection to Ray (extra `ray`): to a cluster that runs, or to processes of its own on this machine.

Knows nothing of what runs there.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.process.stopping import SIGNALS

LOCAL, AUTO = "local", "auto"
REACH_SECONDS = 5.0  # a cluster that takes no connection by then is not there; Ray itself would wait for minutes


@contextmanager
def connected(address: str | None, *, cpus: int | None = None, show_logs: bool = False) -> Iterator[None]:
    """Be connected to Ray while this lasts; whoever is connected already stays so.

    Args:
        address: of a cluster; `auto`: the one that runs on this machine; `None`: processes of one's own, here.
        cpus: that such processes may count on; `None` = as many as there are.
        show_logs: what workers write to standard output and error comes to this process's.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: there is no cluster at the address, it runs other versions of Python or Ray, or it does not start.
    """
    try:
        import ray
    except ImportError as exc:
        raise MissingExtraError("ray", "ray") from exc
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is begun here tells nobody
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus} if address is None else {}
    try:
        require_reachable(address)
        with _signals_kept():
            ray.init(address or LOCAL, logging_level=logging.WARNING, log_to_driver=show_logs, **options)
    except Exception as exc:  # Ray raises bare ones, too
        first_line = str(exc).strip().partition("\n")[0]
        raise UsageError(f"no Ray cluster could be used at {address or LOCAL}: {first_line}") from exc
    try:
        yield
    finally:
        ray.shutdown()


def require_reachable(address: str | None) -> None:
    """Raise `OSError` or `ValueError` where nobody listens at HOST:PORT or ray://HOST:PORT; other addresses pass."""
    if address in (None, AUTO, LOCAL):
        return
    parts = urlsplit(address if "://" in str(address) else f"//{address}")
    if parts.hostname is None or parts.port is None:
        raise ValueError("it is neither HOST:PORT nor auto")
    socket.create_connection((parts.hostname, parts.port), REACH_SECONDS).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray sets a handler for SIGTERM where it is begun in the main thread; ours stay."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
