"""Index jobs in processes of their own that are killed at a chosen call. Nothing else of them is changed."""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch

import indexer.build.plan
from kalm_cache.settings import Settings
from tests.indexes import build

WINDOW = 8  # so that the test corpora have several windows


def run_until_killed(index: Path, settings: Settings, texts: dict[str, str], call: str, nth: int, sign: int) -> None:
    """Run the job in a fresh process that gets signal `sign` when it calls `module:name` for the nth time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports torch once for all of them
    process = context.Process(target=_job, args=(index, settings, texts, call, nth, sign))
    process.start()
    process.join(300)  # on a busy machine, importing torch alone takes half a minute
    assert process.exitcode == (-sign if sign == signal.SIGKILL else 1), process.exitcode


def _job(index: Path, settings: Settings, texts: dict[str, str], call: str, nth: int, sign: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    indexer.build.plan.WINDOW = WINDOW
    _set_trap(call, nth, sign)
    build(index, settings, texts)


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
