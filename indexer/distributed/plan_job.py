"""`partition plan`: a corpus -> texts by shard, ordinals, and a plan that names them. Encodes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.counts import BuildCounts
from indexer.build.index_job import live_or_none, newest_alike
from indexer.build.plan import Reject
from indexer.build.shards.one_process import PLAN_FOLDER, shard_folder
from indexer.build.shards.shuffle import planned_ordinals, shuffle
from indexer.build.spec import BuildSpec, new_manifest
from indexer.corpus import CorpusLine, RejectedLine
from indexer.corpus.unused_fields import UnusedFields
from indexer.distributed.plan import PLAN_FILE, Partition, Plan
from indexer.distributed.receipt import ATTEMPTS
from indexer.models import Encoders
from indexer.reuse.reusable_segments import open_sources
from kalm_cache.generations.build_folders import recover, resume_or_begin
from kalm_cache.generations.generation import BUILDING, high_water_marks
from kalm_cache.generations.manifest import NO_COUNTS, FileReceipt, SegmentReceipt
from kalm_cache.generations.sharding import Sharding
from kalm_cache.settings import Settings
from kalm_cache.storage.durable import disk_errors, rename_durably, sync
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.passage_store import SEAL_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What was planned. `partitions`: passages of each, by number; `plan`: its digest.

    `unused_fields`: how many lines of the corpus have each field that is no part of a passage.
    """

    index: str
    plan: str
    passages: int
    rejected: int
    partitions: list[int]
    text_bytes: int
    seconds: float
    unused_fields: dict[str, int]


def plan_partitions(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
    settings: Settings,
    encoders: Encoders,
    *,
    shards: int,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> PlanReport:
    """Plan the next generation of `index` from a corpus, read once from its beginning, in `shards` partitions.

    Planned again, what has been built stays of use: what of it still fits is not encoded again.

    Raises:
        IndexLockedError: another job is changing the index.
        IndexMismatchError: an unfinished build in the folder has another fingerprint.
        StoreError: it has another number of shards, or is another operation's; or the disk is full.
    """
    started, sharding = time.perf_counter(), Sharding(shards)
    with build_lock(index), disk_errors(index), ExitStack() as stack:
        recover(index)
        building = resume_or_begin(index, "index", encoders.fingerprint, sharding, checkpoint=encoders.checkpoint)
        (building / PLAN_FOLDER / PLAN_FILE).unlink(missing_ok=True)  # its texts are about to change
        _keep_finished_shards(building, sharding)
        source = newest_alike(index, encoders)
        spec = BuildSpec(
            index=index,
            operation="index",
            template=new_manifest(settings, encoders, sharding, live_or_none(index)),
            parent=None,
            models=encoders.build_models,
            batch_tokens=settings.batch_tokens,
            sources=open_sources(source, encoders.fingerprint, encoders.codec, stack),
        )
        unused = UnusedFields()
        plan = _shuffled(spec, unused.watch(lines), building, on_reject, on_progress)
        plan = replace(plan, source=None if source is None else source.name)
        plan.write(building)
    return PlanReport(
        index=str(index),
        plan=plan.digest,
        passages=sum(partition.passages for partition in plan.partitions),
        rejected=plan.rejected,
        partitions=[partition.passages for partition in plan.partitions],
        text_bytes=sum(partition.receipt.bytes for partition in plan.partitions),
        seconds=round(time.perf_counter() - started, 3),
        unused_fields=unused.counts(),
    )


def _shuffled(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> Plan:
    folder = building / PLAN_FOLDER
    first_ordinal = high_water_marks(spec.index).next_ordinal
    finished = [seal.parent for seal in sorted((building / ATTEMPTS).glob(f"*/*/{SEAL_FILE}"))]
    with planned_ordinals(spec, folder, finished) as ordinals:
        shuffled = shuffle(spec, lines, folder, ordinals, on_reject=on_reject, on_progress=on_progress)
        next_ordinal = ordinals.next
    for file in shuffled.files:
        sync(file)
    partitions = [
        Partition(file.name, passages, FileReceipt.of(file))
        for file, passages in zip(shuffled.files, shuffled.passages, strict=True)
    ]
    name = building.name.removesuffix(BUILDING)
    nothing = [SegmentReceipt(f"{shard:05d}", NO_COUNTS, 0, 0, shard) for shard in range(len(partitions))]
    template = replace(spec.template, generation=name, segments=nothing)
    return Plan(template, None, first_ordinal, next_ordinal, spec.batch_tokens, shuffled.rejected, partitions)


def _keep_finished_shards(building: Path, sharding: Sharding) -> None:
    """Take what a commit had linked, when it died after it had given up its attempts, as attempts again."""
    for shard in sharding.shards():
        linked, attempts = shard_folder(building, shard), building / ATTEMPTS / f"{shard.number:05d}"
        if (linked / SEAL_FILE).exists() and not attempts.exists():
            attempts.mkdir(parents=True)
            rename_durably(linked, attempts / "0")
