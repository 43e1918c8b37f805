"""What an actor does: build partitions, with models that it loads once. A plain class; Ray makes it an actor.

Texts come from the plan and states go to an attempt's folder; between actors and driver there are only counts and
receipts.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from indexer.build.counts import BuildCounts
from indexer.distributed.build_job import build_partition
from indexer.distributed.on_ray.remarks import Remarks, Told
from indexer.distributed.places.place import Place
from indexer.distributed.receipt import Receipt
from indexer.models import Encoders, load_encoders_of
from kalm_cache.settings import Settings


class PartitionEncoder:
    """Builds partitions of one plan in its process. `counts` may be asked for while `build` runs."""

    def __init__(self, place: Place, overrides: Settings, scratch: Path | None, threads: int) -> None:
        """Arguments as of `build_partition`; `threads`: of this process, where it computes on CPUs."""
        self._place, self._overrides, self._scratch, self._threads = place, overrides, scratch, threads
        self._counts = BuildCounts()
        self._encoders: Encoders | None = None
        self._remarks = Remarks()

    def tell(self, method: str, *arguments: Any) -> Told:
        """Call a method: its answer, and what was logged here meanwhile. The driver calls this one alone."""
        return Told(getattr(self, method)(*arguments), self._remarks.take())

    def load(self) -> str:
        """Load the models; returns the machine's name. Errors as of `build_partition`."""
        torch.set_num_threads(self._threads)
        self._encoders = load_encoders_of(self._place.plan().template, self._overrides)[1]
        return platform.node()

    def build(self, partition: int) -> Receipt:
        """Build a partition. Errors as of `build_partition`."""
        self._counts = BuildCounts()
        try:
            return build_partition(
                *(self._place, partition, self._overrides),
                scratch=self._scratch,
                encoders=self._encoders,
                on_progress=self._take,
            )
        finally:
            self._counts = BuildCounts()

    def counts(self) -> BuildCounts:
        """How far the present partition is."""
        return self._counts

    def _take(self, counts: BuildCounts) -> None:
        self._counts = replace(counts)
