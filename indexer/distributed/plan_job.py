"""`partition plan`: a corpus -> texts by shard, ordinals, and a plan that names them. Encodes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from indexer.build.batching import batched
from indexer.build.counts import BuildCounts
from indexer.build.index_job import live_or_none, newest_alike
from indexer.build.plan import WINDOW, Reject
from indexer.build.shards.one_process import PLAN_FOLDER, shard_folder
from indexer.build.shards.shuffle import planned_ordinals, shuffle
from indexer.build.spec import BuildSpec, new_manifest, refuse_to_lose
from indexer.build.unfinished.accepted_passages import AcceptedPassages
from indexer.corpus import CorpusLine, RejectedLine, TypedMetadata
from indexer.corpus.languages import with_language
from indexer.corpus.unused_fields import UnusedFields
from indexer.distributed.plan import PLAN_FILE, Partition, Plan
from indexer.distributed.receipt import ATTEMPTS
from indexer.models import Encoders, batch_tokens_of
from indexer.reuse.reusable_segments import open_sources
from kalm_cache.errors import KalmCacheError, UsageError
from kalm_cache.generations.build_folders import locked_live_generation, recover, resume_or_begin
from kalm_cache.generations.generation import BUILDING, Generation, high_water_marks
from kalm_cache.generations.manifest import NO_COUNTS, FileReceipt, SegmentReceipt
from kalm_cache.generations.segments import SegmentSet
from kalm_cache.generations.sharding import Sharding
from kalm_cache.passage import Passage
from kalm_cache.settings import Settings
from kalm_cache.storage.durable import disk_errors, rename_durably, sync
from kalm_cache.storage.locks import build_lock
from kalm_cache.storage.passage_store import SEAL_FILE, doc_id_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What was planned. `partitions`: passages of each, by number; `plan`: its digest.

    `kept`: passages that the corpus does not have, and that stay. `why_encoded`: why nothing that is stored could be
    used, where that is so. `unused_fields`: how many lines of the corpus have each field that is no part of a passage.
    """

    index: str
    plan: str
    passages: int
    rejected: int
    kept: int
    partitions: list[int]
    text_bytes: int
    why_encoded: str | None
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
    operation: str = "index",
    keep_missing: bool = False,
) -> PlanReport:
    """Plan the next generation of `index` from a corpus, read once from its beginning, in `shards` partitions.

    Planned again, what has been built stays of use: what of it still fits is not encoded again. `operation`: `index`,
    or `reindex`: then what is stored in another form is recoded where that is exact. `keep_missing`: passages that the
    corpus does not have stay.

    Raises:
        IndexNotFoundError: nothing has been published that could be reindexed.
        UsageError: passages should be kept whose texts are not stored.
        IndexLockedError: another job is changing the index.
        IndexMismatchError: an unfinished build in the folder has another fingerprint.
        StoreError: it has another number of shards, or is another operation's; or the disk is full.
    """
    started, sharding = time.perf_counter(), Sharding(shards)
    with _source(index, operation, encoders) as source, ExitStack() as stack:
        if keep_missing:
            _require_texts(source)
        stored = source.manifest.columns if operation == "reindex" and source is not None else {}
        metadata = TypedMetadata(settings.metadata, stored)
        building = resume_or_begin(index, operation, encoders.fingerprint, sharding, checkpoint=encoders.checkpoint)
        (building / PLAN_FOLDER / PLAN_FILE).unlink(missing_ok=True)  # its texts are about to change
        _keep_finished_shards(building, sharding)
        settings, lines = with_language(lines, settings)
        template = new_manifest(settings, encoders, sharding, live_or_none(index))
        spec = BuildSpec(
            index=index,
            operation=operation,
            template=template,
            parent=None,
            models=encoders.build_models,
            batch_tokens=batch_tokens_of(settings, encoders.passage_side),
            sources=open_sources(*(source, encoders.fingerprint, encoders.codec, stack), analysis=template.analysis),
            keep_missing=keep_missing,
            columns=metadata.schema,
        )
        unused = UnusedFields()
        plan = _shuffled(spec, metadata.watch(unused.watch(lines)), building, on_reject, on_progress)
        plan = replace(plan, source=None if source is None else source.name)
        plan.write(building)
    return PlanReport(
        index=str(index),
        plan=plan.digest,
        passages=sum(partition.passages for partition in plan.partitions),
        rejected=plan.rejected,
        kept=plan.kept,
        partitions=[partition.passages for partition in plan.partitions],
        text_bytes=sum(partition.receipt.bytes for partition in plan.partitions),
        why_encoded=spec.sources.problem,
        seconds=round(time.perf_counter() - started, 3),
        unused_fields=unused.counts(),
    )


@contextmanager
def _source(index: Path, operation: str, encoders: Encoders) -> Iterator[Generation | None]:
    """What passages are taken from, if there is anything. Under the build lock."""
    if operation == "reindex":
        with locked_live_generation(index) as live:
            yield live.updated(encoders.checkpoint)
    else:
        with build_lock(index), disk_errors(index):
            recover(index)
            yield newest_alike(index, encoders)


def _require_texts(source: Generation | None) -> None:
    if source is not None and not source.manifest.fingerprint.store_text:
        raise UsageError(
            f"{source.folder}: keeps no texts, and partitions are planned by their texts: give the whole corpus and "
            "--delete-missing, or reindex in one process"
        )


def _kept(spec: BuildSpec, accepted: AcceptedPassages) -> Iterator[list[CorpusLine]]:
    """What is stored and the corpus does not have, as lines of it."""
    for segment in spec.sources.every:
        for keys in batched(segment.keys(), WINDOW):
            doc_ids = [doc_id_of(key) for key in accepted.unseen(keys)]
            window = []
            metadata = segment.metadata(segment.store.metas(doc_ids), spec.columns)
            for doc_id, text, values in zip(doc_ids, segment.store.find_texts(doc_ids), metadata, strict=True):
                if not isinstance(text, str):
                    refuse_to_lose(doc_id)
                else:
                    location = f"{segment.store.folder}: {doc_id!r}"
                    window.append(CorpusLine(Passage(doc_id, text), location, metadata=values))
            yield window


class _Beside:
    """What the corpus does not have: kept, as lines of it, or counted as deleted."""

    def __init__(self, spec: BuildSpec) -> None:
        self._spec, self.deleted = spec, 0

    def windows(self, accepted: AcceptedPassages) -> Iterator[list[CorpusLine]]:
        """What is kept. To be read to its end."""
        if self._spec.keep_missing:
            yield from _kept(self._spec, accepted)
        else:
            self.deleted = _count_deleted(live_or_none(self._spec.index), accepted)


def _count_deleted(live: Generation | None, accepted: AcceptedPassages) -> int:
    """Of the passages that the live generation shows; all of them where it cannot be read."""
    if live is None:
        return 0
    try:
        with SegmentSet(live) as segments:
            return sum(len(accepted.unseen(keys)) for keys in batched(segments.keys(), WINDOW))
    except KalmCacheError as exc:
        logger.warning("generation %s cannot be read: %s", live.name, exc)
        return live.manifest.counts.passages


def _shuffled(
    spec: BuildSpec,
    lines: Iterable[CorpusLine | RejectedLine],
    building: Path,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
) -> Plan:
    folder, beside = building / PLAN_FOLDER, _Beside(spec)
    first_ordinal = high_water_marks(spec.index).next_ordinal
    finished = [seal.parent for seal in sorted((building / ATTEMPTS).glob(f"*/*/{SEAL_FILE}"))]
    with planned_ordinals(spec, folder, finished) as ordinals:
        shuffled = shuffle(
            *(spec, lines, folder, ordinals),
            on_reject=on_reject,
            on_progress=on_progress,
            kept=beside.windows,
        )
        next_ordinal = ordinals.next
    for file in shuffled.files:
        sync(file)
    partitions = [
        Partition(file.name, passages, FileReceipt.of(file))
        for file, passages in zip(shuffled.files, shuffled.passages, strict=True)
    ]
    name = building.name.removesuffix(BUILDING)
    nothing = [SegmentReceipt(f"{shard:05d}", NO_COUNTS, 0, 0, shard) for shard in range(len(partitions))]
    template = replace(spec.template, generation=name, segments=nothing, columns=dict(spec.columns))
    return Plan(
        operation=spec.operation,
        template=template,
        source=None,
        first_ordinal=first_ordinal,
        next_ordinal=next_ordinal,
        batch_tokens=spec.batch_tokens,
        rejected=shuffled.rejected,
        kept=shuffled.kept,
        deleted=beside.deleted,
        partitions=partitions,
    )


def _keep_finished_shards(building: Path, sharding: Sharding) -> None:
    """Take what a commit had linked, when it died after it had given up its attempts, as attempts again."""
    for shard in sharding.shards():
        linked, attempts = shard_folder(building, shard), building / ATTEMPTS / f"{shard.number:05d}"
        if (linked / SEAL_FILE).exists() and not attempts.exists():
            attempts.mkdir(parents=True)
            rename_durably(linked, attempts / "0")
