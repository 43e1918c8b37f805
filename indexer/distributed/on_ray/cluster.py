"""A connection to Ray: to a cluster that runs, or to processes of its own on this machine. Builds nothing."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kalm_cache.errors import MissingExtraError, UsageError
from kalm_cache.stopping import SIGNALS

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Workforce:
    """So many encoders, and what each of them holds of its machine."""

    encoders: int
    cpus: int
    gpus: float


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to Ray while this lasts; whoever is connected already stays so.

    Args:
        address: of a cluster; `auto`: the one that runs on this machine; `None`: processes of one's own, here.

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
    options: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        with _signals_kept():
            ray.init(address or LOCAL, logging_level=logging.WARNING, log_to_driver=False, **options)
    except Exception as exc:  # Ray raises bare ones, too
        first_line = str(exc).strip().partition("\n")[0]
        raise UsageError(f"no Ray cluster could be used at {address or LOCAL}: {first_line}") from exc
    try:
        yield
    finally:
        ray.shutdown()


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


def workforce(encoders: int | None, gpus_per_encoder: float | None) -> Workforce:
    """How many encoders there are, and what each may use: an equal part of the cluster, on whichever machine.

    Args:
        encoders: `None` = as many as there are GPUs for; without GPUs, one a machine.
        gpus_per_encoder: `None` = 1 where there are GPUs.

    Raises:
        UsageError: no machine has so many GPUs.
    """
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most_gpus = max(machine.get("GPU", 0.0) for machine in machines)
    gpus = min(most_gpus, 1.0) if gpus_per_encoder is None else gpus_per_encoder
    if gpus > most_gpus:
        raise UsageError(f"--gpus-per-encoder {gpus:g}: the machine with the most GPUs has {most_gpus:g}")
    cpus = [int(machine["CPU"]) for machine in machines if machine.get("CPU", 0.0) >= 1.0]
    if not cpus:
        raise UsageError("no machine of the Ray cluster has a CPU for an encoder")
    if encoders is None:
        encoders = sum(int(machine.get("GPU", 0.0) // gpus) for machine in machines) if gpus else len(cpus)
    return Workforce(encoders, max(1, min(min(cpus), sum(cpus) // encoders)), gpus)
