"""A plan in the folder of an unfinished build, which all builders see."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from platform import node

from indexer.build.shards.one_process import PLAN_FOLDER
from indexer.distributed.plan import Plan, planned_build, read_plan
from indexer.distributed.receipt import ATTEMPTS, Receipt, read_receipt
from kalm_cache.errors import StoreError
from kalm_cache.generations.generation import Generation, open_generation
from kalm_cache.generations.manifest import MANIFEST
from kalm_cache.generations.sharding import Shard
from kalm_cache.storage.durable import disk_errors
from kalm_cache.storage.locks import share

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """The folder of an index. See `Place` for its methods."""

    index: Path

    def plan(self) -> Plan:
        """See `Place.plan`."""
        if not self.index.is_dir():
            raise StoreError(f"{self.index}: is not to be seen from {node()}; put the index where all machines see it")
        return read_plan(planned_build(self.index))

    def building(self, plan: Plan) -> Path:
        """See `Place.building`."""
        return planned_build(self.index)

    def finished(self, plan: Plan, partition: int) -> Receipt | None:
        """See `Place.finished`."""
        building = planned_build(self.index)
        of_plan = (one for one in receipts_of(building, partition) if one.plan == plan.digest)
        return next((receipt for receipt in of_plan if (building / receipt.folder).is_dir()), None)

    def texts(self, plan: Plan, partition: int) -> Path:
        """See `Place.texts`."""
        planned = plan.partitions[partition]
        path = planned_build(self.index) / PLAN_FOLDER / planned.texts
        if not path.is_file() or not planned.receipt.has_digest_of(path):
            raise StoreError(f"{path}: is not what was planned; run kalm-cache partition plan again")
        return path

    @contextmanager
    def source(self, plan: Plan, shard: Shard) -> Iterator[Generation | None]:
        """See `Place.source`; gc leaves it while this lasts."""
        folder = self.index / "generations" / (plan.source or "")
        lock = None if plan.source is None else share(folder / MANIFEST)
        if lock is None:
            yield None
            return
        try:
            yield open_generation(folder)
        finally:
            lock.release()

    def hand_in(self, plan: Plan, receipt: Receipt) -> None:
        """See `Place.hand_in`."""
        attempt = planned_build(self.index) / receipt.folder
        with disk_errors(attempt):
            receipt.write(attempt.with_name(f"{attempt.name}.json"))


def receipts_of(building: Path, partition: int) -> Iterator[Receipt]:
    """Receipts of attempts at one partition, the first attempt first; what cannot be read is left out."""
    folder = building / ATTEMPTS / f"{partition:05d}"
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        try:
            yield read_receipt(path)
        except StoreError as exc:
            logger.warning("%s", exc)
