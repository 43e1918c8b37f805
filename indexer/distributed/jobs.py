"""`index` and `reindex` in partitions, by whatever builds these: planned, built and committed in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from indexer.build.counts import BuildCounts
from indexer.build.index_job import IndexReport
from indexer.build.plan import Reject
from indexer.change.reindex import ReindexReport, reindex_report
from indexer.corpus import CorpusLine, RejectedLine
from indexer.distributed.commit_job import commit_partitions
from indexer.distributed.plan_job import PlanReport, plan_partitions
from indexer.distributed.receipt import Receipt
from indexer.models import Encoders
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings


class PartitionBuilder(Protocol):
    """Builds the partitions of a plan, on whatever it has."""

    @property
    def encoders(self) -> int:
        """How many partitions it builds at a time."""

    def build(
        self, index: Path, partitions: int, overrides: Settings, on_progress: Callable[[BuildCounts], None]
    ) -> list[Receipt]:
        """Build all partitions of the plan of `index`; what is built already is not built again.

        Args:
            index: the index folder.
            partitions: how many the plan has.
            overrides: as in `build_partition`.
            on_progress: called now and then, with the counts of all partitions together.

        Returns:
            A receipt for each, by number.

        Raises:
            KalmCacheError: as `build_partition`; what is stored stays.
        """


def index_in_partitions(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
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
    plan = plan_partitions(
        *(lines, index, settings, encoders),
        shards=shards or builder.encoders,
        on_reject=on_reject,
        on_progress=on_progress,
    )
    _build(builder, index, plan, settings, on_progress)
    report = commit_partitions(index)
    return replace(report, seconds=round(time.perf_counter() - started, 3), unused_fields=plan.unused_fields)


def reindex_in_partitions(
    lines: Iterable[CorpusLine | RejectedLine],
    index: Path,
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
    started, sharding = time.perf_counter(), open_current(index).manifest.sharding
    plan = plan_partitions(
        *(lines, index, settings, encoders),
        shards=shards or (builder.encoders if sharding is None else sharding.count),
        on_reject=on_reject,
        on_progress=on_progress,
        operation="reindex",
        keep_missing=keep_missing,
    )
    counts = _build(builder, index, plan, settings, on_progress)
    commit_partitions(index)
    seconds = time.perf_counter() - started
    return reindex_report(index, open_current(index), counts, plan.why_encoded, plan.unused_fields, seconds)


def _build(
    builder: PartitionBuilder,
    index: Path,
    plan: PlanReport,
    settings: Settings,
    on_progress: Callable[[BuildCounts], None],
) -> BuildCounts:
    """Build the partitions of a plan; the counts of all of them, with what the plan counted."""
    planned = BuildCounts(rejected=plan.rejected, kept=plan.kept)
    receipts = builder.build(
        *(index, len(plan.partitions), settings),
        on_progress=lambda counts: on_progress(BuildCounts.total([planned, counts])),
    )
    return BuildCounts.total([planned, *(receipt.build_counts() for receipt in receipts)])
