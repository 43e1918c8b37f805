"""What building a partition needs of the place where its plan is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from indexer.distributed.plan import Plan
from indexer.distributed.receipt import Receipt
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.sharding import Shard


class Place(Protocol):
    """Where one plan lies. A value that may be sent to another process."""

    def plan(self) -> Plan:
        """The plan. Raises `StoreError` where there is none."""

    def building(self, plan: Plan) -> Path:
        """A folder here for attempts; in it, `PLAN_FOLDER` has the texts that were asked for."""

    def finished(self, plan: Plan, partition: int) -> Receipt | None:
        """The receipt of an attempt that has finished, and whose files are there."""

    def texts(self, plan: Plan, partition: int) -> Path:
        """The texts of a partition as a file here. Raises `StoreError` where they are not what was planned."""

    def source(self, plan: Plan, shard: Shard) -> AbstractContextManager[Generation | None]:
        """The generation that passages of a shard are taken from; `None` where there is none (any more)."""

    def hand_in(self, plan: Plan, receipt: Receipt) -> None:
        """Make a finished attempt count. Raises `StoreError` where the plan is no longer to be built."""
