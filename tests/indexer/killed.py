"""Index jobs in processes of their own that are killed at a chosen call. Nothing else of them is changed."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import indexer.build.plan
from indexer.distributed.commit_job import commit_partitions
from kalm_cache.process.stopping import catch_signals
from kalm_cache.settings import Settings
from tests.indexes import build

WINDOW = 8  # so that the test corpora have several windows


def run_until_killed(
    index: Path,
    settings: Settings,
    texts: dict[str, str],
    call: str,
    nth: int,
    sign: int,
    shards: int | None = None,
) -> None:
    """Run the job in a fresh process that gets signal `sign` when it calls `module:name` for the nth time."""
    _run(_index, (index, settings, texts, shards), (call, nth, sign))


def commit_until_killed(index: Path, call: str, nth: int) -> None:
    """Commit the partitions of an index in a fresh process, which is killed as in `run_until_killed`."""
    _run(commit_partitions, (index,), (call, nth, signal.SIGKILL))


def _run(job: Callable[..., object], arguments: tuple[Any, ...], trap: tuple[str, int, int]) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports torch once for all of them
    process = context.Process(target=_trapped, args=(job, arguments, trap))
    process.start()
    process.join(300)  # on a busy machine, importing torch alone takes half a minute
    sign = trap[2]
    assert process.exitcode == (-sign if sign == signal.SIGKILL else 1), process.exitcode


def _trapped(job: Callable[..., object], arguments: tuple[Any, ...], trap: tuple[str, int, int]) -> None:
    torch.set_num_threads(1)
    catch_signals()  # as the command line does
    _set_trap(*trap)
    job(*arguments)


def _index(index: Path, settings: Settings, texts: dict[str, str], shards: int | None) -> None:
    indexer.build.plan.WINDOW = WINDOW
    build(index, settings, texts, shards=shards)


def _set_trap(call: str, nth: int, sign: int) -> None:
    module, names = call.split(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), itertools.count(1)

    def trapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), sign)
        return original(*arguments, **options)

    setattr(owner, name, trapped)
