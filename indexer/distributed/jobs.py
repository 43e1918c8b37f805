"""The commands over a place: planned, built and committed one by one, or in one call by whatever builds partitions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from indexer.build.counts import BuildCounts
from indexer.build.index_job import IndexReport
from indexer.build.plan import Reject
from indexer.change.reindex import ReindexReport, reindex_report
from indexer.corpus import CorpusLine, RejectedLine
from indexer.distributed.bucket_jobs import commit_in_bucket, drop_in_bucket, plan_in_bucket
from indexer.distributed.commit_job import DropReport, commit_partitions, drop_partitions
from indexer.distributed.places.bucket import BucketPlace
from indexer.distributed.places.folder import FolderPlace
from indexer.distributed.places.place import Place
from indexer.distributed.plan_job import PlanReport, plan_partitions
from indexer.distributed.receipt import Receipt
from indexer.models import Encoders
from kalm_cache.errors import UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.manifest import Manifest
from kalm_cache.generations.remote.root import read_remote_manifest, require_root
from kalm_cache.index.remote import remote_copy
from kalm_cache.settings import Settings

AnyPlace = FolderPlace | BucketPlace


class PartitionBuilder(Protocol):
    """Builds the partitions of a plan, on whatever it has."""

    @property
    def encoders(self) -> int:
        """How many partitions it builds at a time."""

    def build(
        self, place: Place, partitions: int, overrides: Settings, on_progress: Callable[[BuildCounts], None]
    ) -> list[Receipt]:
        """Build all partitions of the plan of a place; what is built already is not built again.

        Args:
            place: where the plan is.
            partitions: how many the plan has.
            overrides: as in `build_partition`.
            on_progress: called now and then, with the counts of all partitions together.

        Returns:
            A receipt for each, by number.

        Raises:
            KalmCacheError: as `build_partition`; what is stored stays.
        """


def place_of(index: str | Path, settings: Settings | None = None) -> AnyPlace:
    """Where an index is that is built in partitions: a folder, or a URL. Errors as of `remote_copy`."""
    remote = remote_copy(str(index), settings)
    return FolderPlace(Path(index).absolute()) if remote is None else BucketPlace(remote)


def plan_at(
    place: AnyPlace,
    lines: Iterable[CorpusLine | RejectedLine],
    settings: Settings,
    encoders: Encoders,
    *,
    shards: int,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    operation: str = "index",
    keep_missing: bool = False,
) -> PlanReport:
    """Plan the next generation of the index at a place. Arguments and errors as of `plan_partitions`."""
    if isinstance(place, BucketPlace):
        plan = partial(plan_in_bucket, lines, place)
    else:
        plan = partial(plan_partitions, lines, place.index)
    return plan(
        *(settings, encoders),
        shards=shards,
        on_reject=on_reject,
        on_progress=on_progress,
        operation=operation,
        keep_missing=keep_missing,
    )


def commit_at(place: AnyPlace, given: Sequence[Path] = ()) -> IndexReport:
    """Publish what was planned at a place. Arguments and errors as of `commit_partitions` and `commit_in_bucket`."""
    if not isinstance(place, BucketPlace):
        return commit_partitions(place.index, given)
    if given:
        raise UsageError(
            "--receipt names a file, and the receipts of an index in an object store are there: leave it out"
        )
    return commit_in_bucket(place)


def drop_at(place: AnyPlace) -> DropReport:
    """Give up what was planned at a place. Errors as of `drop_partitions` and `drop_in_bucket`."""
    return drop_in_bucket(place) if isinstance(place, BucketPlace) else drop_partitions(place.index)


def live_manifest_at(place: AnyPlace) -> Manifest:
    """The manifest of what is live at a place. Raises `IndexNotFoundError`, `StoreError`."""
    if not isinstance(place, BucketPlace):
        return open_current(place.index).manifest
    root, _ = require_root(place.store)
    return read_remote_manifest(place.store, root.live_manifest)[1]


def index_in_partitions(
    lines: Iterable[CorpusLine | RejectedLine],
    place: AnyPlace,
    settings: Settings,
    encoders: Encoders,
    builder: PartitionBuilder,
    *,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    shards: int | None = None,
) -> IndexReport:
    """As `run_index_job`; `shards`: `None` = as many as are built at a time. Errors as there, and of the builder."""
    started = time.perf_counter()
    plan = plan_at(
        *(place, lines, settings, encoders),
        shards=shards or builder.encoders,
        on_reject=on_reject,
        on_progress=on_progress,
    )
    _build(builder, place, plan, settings, on_progress)
    report = commit_at(place)
    return replace(report, seconds=round(time.perf_counter() - started, 3), unused_fields=plan.unused_fields)


def reindex_in_partitions(
    lines: Iterable[CorpusLine | RejectedLine],
    place: AnyPlace,
    settings: Settings,
    encoders: Encoders,
    builder: PartitionBuilder,
    *,
    keep_missing: bool = False,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    shards: int | None = None,
) -> ReindexReport:
    """As `run_reindex`; an index without shards gets as many as are built at a time.

    Raises:
        UsageError: passages should be kept whose texts are not stored.
        KalmCacheError: as `run_reindex`, and as the builder.
    """
    started, sharding = time.perf_counter(), live_manifest_at(place).sharding
    plan = plan_at(
        *(place, lines, settings, encoders),
        shards=shards or (builder.encoders if sharding is None else sharding.count),
        on_reject=on_reject,
        on_progress=on_progress,
        operation="reindex",
        keep_missing=keep_missing,
    )
    counts = _build(builder, place, plan, settings, on_progress)
    report = commit_at(place)
    seconds = time.perf_counter() - started
    live = live_manifest_at(place)
    return reindex_report(Path(report.index), live, counts, plan.why_encoded, plan.unused_fields, seconds)


def _build(
    builder: PartitionBuilder,
    place: Place,
    plan: PlanReport,
    settings: Settings,
    on_progress: Callable[[BuildCounts], None],
) -> BuildCounts:
    """Build the partitions of a plan; the counts of all of them, with what the plan counted."""
    planned = BuildCounts(rejected=plan.rejected, kept=plan.kept)
    receipts = builder.build(
        *(place, len(plan.partitions), settings),
        on_progress=lambda counts: on_progress(BuildCounts.total([planned, counts])),
    )
    return BuildCounts.total([planned, *(receipt.build_counts() for receipt in receipts)])
