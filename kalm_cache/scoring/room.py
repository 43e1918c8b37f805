"""A batch that the device has no memory for is computed in halves. Knows nothing of models.

What did not fit once is not tried again: later batches of that size are cut at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from kalm_cache.errors import DeviceLostError, DeviceMemoryError

_T = TypeVar("_T")
_R = TypeVar("_R")
logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Room:
    """What a device has room for at once.

    device: where batches are computed.
    fits: tokens of a batch that may fit; unknown, and without bound, until one did not.
    """

    device: torch.device
    fits: float = math.inf

    def compute(
        self, batch: Sequence[_T], tokens_of: Callable[[_T], int], run: Callable[[Sequence[_T]], Sequence[_R]]
    ) -> list[_R]:
        """`run` of the batch, or of its parts one after the other: a result for each item, in order.

        Args:
            batch: items that may be computed together or apart.
            tokens_of: size of one.
            run: computes some of them.

        Raises:
            DeviceMemoryError: one item alone is too large.
            DeviceLostError: the device fails, and will until its process ends.
        """
        results: list[_R] = []
        waiting = [batch]
        while waiting:
            some = waiting.pop()
            tokens = sum(map(tokens_of, some))
            done = None if len(some) > 1 and tokens > self.fits else self._try(some, tokens, run)
            if done is None:
                waiting += [some[len(some) // 2 :], some[: len(some) // 2]]
            else:
                results += done
        return results

    def _try(self, some: Sequence[_T], tokens: int, run: Callable[[Sequence[_T]], Sequence[_R]]) -> Sequence[_R] | None:
        """Results, or `None` where memory did not suffice."""
        try:
            return run(some)
        except RuntimeError as exc:
            if is_lost(exc):
                raise DeviceLostError(self.device, exc) from exc
            if not is_out_of_memory(exc):
                raise
        # behind `except`: an error that is being handled keeps all tensors of the batch alive
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(some) == 1:
            raise DeviceMemoryError(self.device, f"a batch of one, {tokens} tokens")
        self.fits = tokens / 2
        logger.warning("%s has no memory for a batch of %d tokens: from here on it gets half", self.device, tokens)
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's allocator had no memory; that of the CPU has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def is_lost(error: BaseException) -> bool:
    """Whether a device failed so that all that is asked of it later fails, too."""
    kind = getattr(torch, "AcceleratorError", None)  # not in older torch
    return (kind is not None and isinstance(error, kind)) or str(error).startswith("CUDA error:")
