"""`partition build`: (partition, plan) -> an attempt of its own, and its receipt. Takes no lock of the index.

An attempt holds a lock on a file beside it for as long as its process lives. Who comes next takes up what a dead one
left, or begins another where one still works: it may be a slow machine or a lost one, and either may finish first.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.build.build import BuiltSegment
from indexer.build.counts import BuildCounts
from indexer.build.shards.one_process import build_shard
from indexer.build.spec import BuildSpec
from indexer.distributed.places.place import Place
from indexer.distributed.plan import Plan
from indexer.distributed.receipt import ATTEMPTS, Receipt
from indexer.models import Encoders, load_encoders_of
from indexer.reuse.reusable_segments import ReusableSegments, open_sources
from kalm_cache.errors import KalmCacheError, StoreError, UsageError
from kalm_cache.generations.publish import receipts
from kalm_cache.generations.sharding import Shard
from kalm_cache.settings import Settings
from kalm_cache.storage.durable import disk_errors, sync_tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NoOrdinals:
    """None to give: every passage of a partition has its own from the plan. `next`: above all of these."""

    next: int

    def reserve(self, doc_ids: Sequence[str]) -> list[int]:
        """See `Ordinals.reserve`. Raises `StoreError`: there are none to give."""
        if doc_ids:
            raise StoreError(f"{doc_ids[0]!r} has no ordinal in the plan; run kalm-cache partition plan again")
        return []


def build_partition(
    place: Place,
    partition: int,
    overrides: Settings,
    *,
    scratch: Path | None = None,
    encoders: Encoders | None = None,
    on_progress: Callable[[BuildCounts], None],
) -> Receipt:
    """Build one partition of the plan, or go on with what a dead process left of it; returns its receipt.

    A partition that has a receipt of this plan is not built again.

    Args:
        place: where the plan is.
        partition: its number, from 0.
        overrides: settings that decide no stored byte: the device, above all.
        scratch: a folder on a local disk to build in, where the place is not on one; the finished segment is copied.
        encoders: those of the plan; `None` = load them.
        on_progress: called after every batch.

    Raises:
        UsageError: the plan has no such partition.
        IndexMismatchError: the models are not those of the plan.
        StoreError: nothing is planned, the texts are damaged, or the disk is full.
    """
    plan = place.plan()
    if not 0 <= partition < len(plan.partitions):
        raise UsageError(f"partition {partition}: the plan has 0 to {len(plan.partitions) - 1}")
    finished = place.finished(plan, partition)
    if finished is not None:
        return finished
    encoders = encoders or load_encoders_of(plan.template, overrides)[1]
    building = place.building(plan)
    attempts = building / ATTEMPTS / f"{partition:05d}"
    with disk_errors(attempts), _taken(attempts) as folder, ExitStack() as stack:
        folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)  # a receipt of another plan
        texts, shard = place.texts(plan, partition), plan.shard(partition)
        spec = _spec(building, plan, encoders, _sources(place, plan, shard, encoders, stack))
        workplace = folder if scratch is None else scratch / f"{plan.digest[:16]}-{partition:05d}-{folder.name}"
        ordinals = NoOrdinals(plan.next_ordinal)
        segment = build_shard(spec, shard, texts, workplace, ordinals, on_progress=on_progress)
        _require_complete(segment, plan, partition)
        if workplace != folder:
            _move(workplace, folder)
        sync_tree(folder)
        receipt = _receipt(building, folder, plan, partition, segment)
        place.hand_in(plan, receipt)
    return receipt


@contextmanager
def _taken(attempts: Path) -> Iterator[Path]:
    """The folder of the first attempt that no living process holds; nobody else gets it while this lasts."""
    attempts.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        descriptor = os.open(attempts / f"{number}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield attempts / str(number)
        finally:
            os.close(descriptor)
        return


def _spec(building: Path, plan: Plan, encoders: Encoders, sources: ReusableSegments) -> BuildSpec:
    return BuildSpec(
        index=building.parent.parent,
        operation=plan.operation,
        template=plan.template,
        parent=None,
        models=encoders.build_models,
        batch_tokens=plan.batch_tokens,
        sources=sources,
        columns=dict(plan.template.columns),
    )


def _sources(place: Place, plan: Plan, shard: Shard, encoders: Encoders, stack: ExitStack) -> ReusableSegments:
    """What passages are copied from; where gc has removed it since, all are encoded, under the ordinals of the plan."""
    try:
        source = stack.enter_context(place.source(plan, shard))
        if source is None:
            return ReusableSegments()
        source = source.updated(encoders.checkpoint)
        return open_sources(
            *(source, encoders.fingerprint, encoders.codec, stack), analysis=plan.template.analysis, shard=shard
        )
    except KalmCacheError as exc:
        logger.warning("nothing is copied from generation %s: %s", plan.source, exc)
        return ReusableSegments()


def _require_complete(segment: BuiltSegment, plan: Plan, partition: int) -> None:
    planned = plan.partitions[partition].passages
    if segment.stored.passages != planned:
        raise StoreError(
            f"partition {partition} has {segment.stored.passages} passages, {planned} were planned: the plan was made "
            "again meanwhile; run kalm-cache partition build again"
        )


def _move(workplace: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workplace, folder)
    shutil.rmtree(workplace)


def _receipt(building: Path, folder: Path, plan: Plan, partition: int, segment: BuiltSegment) -> Receipt:
    return Receipt(
        plan=plan.digest,
        partition=partition,
        folder=folder.relative_to(building).as_posix(),
        counts=segment.stored,
        files=receipts(folder),
        encoded=segment.counts.encoded,
        resumed=segment.counts.resumed,
        copied=segment.counts.copied,
        recoded=segment.counts.recoded,
    )
