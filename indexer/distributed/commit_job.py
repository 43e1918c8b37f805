"""`partition commit`: one receipt a partition -> the next generation, published once. Computes no states.

All that is done here for all shards at once is their first stage: scores and the quantiser depend on every partition.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.build.build import BuiltSegment, publish_base
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import FOLDER
from indexer.build.index_job import IndexReport, live_or_none, report_of
from indexer.build.shards.one_process import PLAN_FOLDER, finish_first_stage, shard_folder
from indexer.build.spec import NewBase
from indexer.distributed.places.folder import receipts_of
from indexer.distributed.plan import Plan, planned_build, read_plan
from indexer.distributed.receipt import ATTEMPTS, Receipt, read_receipt
from kalm_cache.errors import StoreError
from kalm_cache.generations.build_folders import drop, recover
from kalm_cache.generations.generation import BUILDING, REMOVING, high_water_marks
from kalm_cache.generations.manifest import FileReceipt
from kalm_cache.generations.publish import receipts
from kalm_cache.storage.durable import disk_errors, link_or_copy, rename_durably
from kalm_cache.storage.locks import build_lock

SHOWN = 10


def commit_partitions(index: Path, given: Sequence[Path] = ()) -> IndexReport:
    """Publish the planned generation of attempts that are finished. Done again after a death, it goes on.

    Args:
        index: the index folder.
        given: files of receipts; none = those that lie beside the attempts. Of several attempts at one partition the
            first counts: what they hold is the same.

    Raises:
        IndexLockedError: another job is changing the index.
        StoreError: nothing is planned; a partition has no receipt; a receipt is of another plan, or a file is not as
            it says; or ordinals were given since the plan.
    """
    started = time.perf_counter()
    with build_lock(index), disk_errors(index):
        recover(index)
        building = planned_build(index)
        plan = read_plan(building)
        _require_room(index, plan)
        chosen = one_a_partition(plan, _read(building, plan, given))
        segments = [_linked(building, plan, receipt) for receipt in chosen]
        finish_first_stage(plan.template, [segment.folder for segment in segments])
        known = _known(building, segments, chosen)
        _put_aside(building)
        base = NewBase(index, plan.operation, plan.template, live_or_none(index), columns=dict(plan.template.columns))
        generation = publish_base(base, building, segments, receipts(building, known))
        shutil.rmtree(_removing(building))
    counts = BuildCounts.total(receipt.build_counts() for receipt in chosen)
    counts.rejected = plan.rejected
    return report_of(index, generation, counts, time.perf_counter() - started, unused_fields={})  # the plan said them


def _require_room(index: Path, plan: Plan) -> None:
    given = high_water_marks(index).next_ordinal
    if given > plan.first_ordinal:
        raise StoreError(
            f"{index}: ordinals up to {given} were given since the plan, which begins at {plan.first_ordinal}; run "
            "kalm-cache partition plan again"
        )


def one_a_partition(plan: Plan, receipts: Iterable[Receipt]) -> list[Receipt]:
    """The first receipt of each partition, by number. Raises `StoreError` where one has none."""
    found: dict[int, Receipt] = {}
    for receipt in receipts:
        if receipt.partition >= len(plan.partitions):
            raise StoreError(f"a receipt is of partition {receipt.partition}, which the plan does not have")
        if receipt.counts.passages != plan.partitions[receipt.partition].passages:
            raise StoreError(
                f"partition {receipt.partition}: its receipt does not count what was planned; build it again"
            )
        found.setdefault(receipt.partition, receipt)
    missing = [partition for partition in range(len(plan.partitions)) if partition not in found]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
        raise StoreError(
            f"{len(missing)} of {len(plan.partitions)} partitions are not built: {shown}; run "
            f"kalm-cache partition build --partition {missing[0]}, and so on"
        )
    return [found[partition] for partition in range(len(plan.partitions))]


def _read(building: Path, plan: Plan, given: Sequence[Path]) -> list[Receipt]:
    """The receipts of this plan. Raises `StoreError` where one that was given is of another."""
    if not given:
        every = (receipt for partition in range(len(plan.partitions)) for receipt in receipts_of(building, partition))
        return [receipt for receipt in every if receipt.plan == plan.digest]
    read = [read_receipt(path) for path in given]
    for path, receipt in zip(given, read, strict=True):
        if receipt.plan != plan.digest:
            raise StoreError(f"{path}: is of plan {receipt.plan[:12]}…, and {plan.digest[:12]}… is to be committed")
    return read


def _linked(building: Path, plan: Plan, receipt: Receipt) -> BuiltSegment:
    """The segment of a receipt, in its place in the generation."""
    folder = shard_folder(building, plan.shard(receipt.partition))
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted commit had linked or scored
    for name, file in receipt.files.items():
        path = building / receipt.folder / name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise StoreError(
                f"{path}: is not as its receipt says; remove {building / receipt.folder}, and run "
                f"kalm-cache partition build --partition {receipt.partition} again"
            )
        link_or_copy(path, folder / name)
    return BuiltSegment(folder, receipt.counts, plan.next_ordinal, BuildCounts(), time.perf_counter())


def _known(building: Path, segments: Sequence[BuiltSegment], chosen: Sequence[Receipt]) -> dict[str, FileReceipt]:
    """Receipts of files that are as they were built: all but those of first stages."""
    return {
        (segment.folder / name).relative_to(building).as_posix(): file
        for segment, receipt in zip(segments, chosen, strict=True)
        for name, file in receipt.files.items()
        if not name.startswith(f"{FOLDER}/")
    }


def _removing(building: Path) -> Path:
    return building.with_name(building.name.removesuffix(BUILDING) + REMOVING)


def _put_aside(building: Path) -> None:
    """Leave nothing in the build but what is published. An attempt that still runs finds its folder gone."""
    removing = _removing(building)
    removing.mkdir(exist_ok=True)
    for name in (ATTEMPTS, PLAN_FOLDER):
        rename_durably(building / name, removing / name)


@dataclass(frozen=True, slots=True)
class DropReport:
    """What was given up: a plan, and how many of its partitions were built."""

    index: str
    plan: str
    partitions: int
    built: int


def drop_partitions(index: Path) -> DropReport:
    """Give up the plan of an index folder, and all that was built of it. An attempt that still runs ends with an error.

    Raises:
        IndexLockedError: another job is changing the index.
        StoreError: nothing is planned.
    """
    with build_lock(index), disk_errors(index):
        building = planned_build(index)
        plan = read_plan(building)
        built = {receipt.partition for receipt in _read(building, plan, ())}
        drop(building)
    return DropReport(str(index), plan.digest, len(plan.partitions), len(built))
