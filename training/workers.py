"""Several single-threaded workers on one set of shared weights ("Hogwild").

Each worker draws its own batches, keeps its own Adam moments and writes its updates straight into shared memory.
There is no barrier, so a busy machine slows a worker without stalling the other, as OpenMP threads would.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn


def train_with_workers(work: Callable[..., None], count: int, model: nn.Module, *args: Any) -> None:
    """Runs `work(rank, count, model, *args)` in `count` processes over shared weights; rank 0 logs and saves."""
    model.share_memory()
    context = mp.get_context("spawn")
    processes = [context.Process(target=_run, args=(work, rank, count, model, *args)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a worker failed with {process.exitcode}")


def _run(work: Callable[..., None], rank: int, count: int, model: nn.Module, *args: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.manual_seed(1000 + rank)
    work(rank, count, model, *args)
