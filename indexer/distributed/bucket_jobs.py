"""Plan and commit in an object store. What is moved are texts and first stages; states stay where builders put them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from indexer.build.build import BuiltSegment, base_manifest
from indexer.build.counts import BuildCounts
from indexer.build.first_stage import FOLDER
from indexer.build.index_job import IndexReport, report_of
from indexer.build.plan import Reject
from indexer.build.shards.one_process import PLAN_FOLDER, finish_first_stage, shard_folder
from indexer.build.spec import NewBase
from indexer.corpus import CorpusLine, RejectedLine
from indexer.distributed.commit_job import DropReport, one_a_partition
from indexer.distributed.places.bucket import BucketPlace, OpenPlan, lacking, read_open_plan, require_open_plan
from indexer.distributed.plan import Plan, planned_build, read_plan
from indexer.distributed.plan_job import PlanReport, plan_partitions
from indexer.distributed.receipt import Receipt
from indexer.models import Encoders
from kalm_cache.errors import IndexConflictError, StoreError
from kalm_cache.generations.build_folders import drop, unfinished_builds
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.generation import Generation
from kalm_cache.generations.manifest import MANIFEST, FileReceipt, Manifest
from kalm_cache.generations.publish import receipts
from kalm_cache.generations.remote.pull import recorded_root
from kalm_cache.generations.remote.push import gc_ends
from kalm_cache.generations.remote.root import (
    FILES,
    OPEN_PLAN,
    Root,
    new_token,
    read_remote_manifest,
    read_root,
)
from kalm_cache.generations.remote.transfer import download, upload_missing
from kalm_cache.object_store.store import ObjectStore
from kalm_cache.settings import Settings
from kalm_cache.storage.durable import file_digest, write_atomically


def plan_in_bucket(
    lines: Iterable[CorpusLine | RejectedLine],
    place: BucketPlace,
    settings: Settings,
    encoders: Encoders,
    *,
    shards: int,
    on_reject: Reject,
    on_progress: Callable[[BuildCounts], None],
    operation: str = "index",
    keep_missing: bool = False,
) -> PlanReport:
    """As `plan_partitions`; the plan and its texts are in the store, and nothing stays here.

    Raises:
        IndexConflictError: a plan of other settings is there, or another one was faster.
        KalmCacheError: as `plan_partitions`, and as `RemoteCopy.changing`.
    """
    with place.copy.changing(create=True) as folder:
        if unfinished_builds(folder):
            raise StoreError(f"{place.copy.location}: an unfinished build is in {folder}; run its command again first")
        report = plan_partitions(
            *(lines, folder, settings, encoders),
            shards=shards,
            on_reject=on_reject,
            on_progress=on_progress,
            operation=operation,
            keep_missing=keep_missing,
        )
        building = planned_build(folder)
        try:
            _publish_plan(place.store, OpenPlan(read_plan(building), recorded_root(folder)), building / PLAN_FOLDER)
        finally:
            drop(building)
    return replace(report, index=str(place.copy.location))


def _publish_plan(store: ObjectStore, opened: OpenPlan, texts: Path) -> None:
    """Put a plan into the store, then what it needs: a gc that does not see it yet is waited for."""
    there, found = read_open_plan(store)
    if there is not None and not _is_alike(there.plan, opened.plan):
        raise IndexConflictError(
            f"{store}: partitions of another index job are planned; run kalm-cache partition commit, or partition drop"
        )
    if not store.swap(OPEN_PLAN, opened.to_bytes(), found):
        raise IndexConflictError(f"{store}: another plan was made meanwhile; run the same command again")
    root, _ = read_root(store)
    if root is not None and root.collecting is not None:
        gc_ends(store, root)
    upload_missing(store, [(texts / one.texts, one.receipt) for one in opened.plan.partitions])


def _is_alike(one: Plan, other: Plan) -> bool:
    """Whether both are of the same job: then the later one replaces the other."""
    return (one.operation, one.template.fingerprint, one.template.sharding) == (
        other.operation,
        other.template.fingerprint,
        other.template.sharding,
    )


def commit_in_bucket(place: BucketPlace) -> IndexReport:
    """Publish the planned generation by one swap of `CURRENT`. Done again after a death, it goes on.

    First stages are fetched and scored together; states and texts are named in the manifest, and not moved.

    Raises:
        IndexConflictError: another writer published since the plan.
        StoreError: nothing is planned; a partition has no receipt, or the store lacks a file that one names.
    """
    started = time.perf_counter()
    store, opened = place.store, require_open_plan(place.store)
    plan = opened.plan
    chosen = _chosen(store, place, plan)
    work = place.building(plan) / "commit"
    shutil.rmtree(work, ignore_errors=True)
    root, found = read_root(store)
    manifest = _published(store, root, plan, chosen)
    if manifest is None:
        _require_base(store, root, opened)
        manifest = _manifest(store, root, plan, chosen, work)
        write_atomically(work / MANIFEST, manifest.to_json())
        digest = file_digest(work / MANIFEST)
        files = [(work / name, manifest.files[name]) for name in manifest.files if (work / name).is_file()]
        upload_missing(store, [*files, (work / MANIFEST, FileReceipt.of(work / MANIFEST))])
        if not store.swap(CURRENT, _root(root, manifest, digest).to_bytes(), found):
            raise IndexConflictError(f"{store}: another writer was faster; run kalm-cache partition commit again")
    place.forget()
    counts = BuildCounts.total(receipt.build_counts() for receipt in chosen)
    counts.rejected = plan.rejected
    generation = Generation(work, manifest, manifest.segments[0].name)
    report = report_of(work, generation, counts, time.perf_counter() - started, unused_fields={})
    return replace(report, index=str(place.copy.location))


def drop_in_bucket(place: BucketPlace) -> DropReport:
    """Give up the plan in a store; what was built of it is for gc. Raises `StoreError` where nothing is planned."""
    plan = require_open_plan(place.store).plan
    built = {receipt.partition for receipt in place.receipts(plan)}
    place.forget()
    return DropReport(str(place.copy.location), plan.digest, len(plan.partitions), len(built))


def _chosen(store: ObjectStore, place: BucketPlace, plan: Plan) -> list[Receipt]:
    """One receipt for each partition, whose files are there."""
    sizes = {name: listed.bytes for name, listed in store.list(FILES).items()}
    return one_a_partition(plan, (one for one in place.receipts(plan) if not lacking(one, sizes)))


def _published(store: ObjectStore, root: Root | None, plan: Plan, chosen: Sequence[Receipt]) -> Manifest | None:
    """The live manifest, where it is of this plan: a commit died after its swap, or another one was faster."""
    if root is None or root.live != plan.template.generation:
        return None
    manifest = read_remote_manifest(store, root.live_manifest)[1]
    return manifest if _kept_files(chosen).items() <= manifest.files.items() else None


def _require_base(store: ObjectStore, root: Root | None, opened: OpenPlan) -> None:
    is_base = opened.base is None if root is None else root.follows(opened.base)
    if not is_base:
        raise IndexConflictError(
            f"{store}: another writer published since the plan, and it won; run kalm-cache partition plan again"
        )


def _manifest(store: ObjectStore, root: Root | None, plan: Plan, chosen: Sequence[Receipt], work: Path) -> Manifest:
    """The manifest to publish; in `work` are those of its files that no builder has put into the store."""
    segments = [_fetched(store, plan, receipt, work) for receipt in chosen]
    finish_first_stage(plan.template, [segment.folder for segment in segments])
    parent = None
    if root is not None:
        live = read_remote_manifest(store, root.live_manifest)[1]
        parent = Generation(work, live, live.segments[0].name)
    base = NewBase(work, plan.operation, plan.template, parent, columns=dict(plan.template.columns))
    files = dict(sorted((_kept_files(chosen) | receipts(work)).items()))
    manifest = base_manifest(base, plan.template.generation, segments, files, plan.deleted)
    return replace(manifest, parent=None if root is None else root.live)


def _fetched(store: ObjectStore, plan: Plan, receipt: Receipt, work: Path) -> BuiltSegment:
    """The first stage of a segment, in its place in the generation."""
    folder = shard_folder(work, plan.shard(receipt.partition))
    of_first_stage = {name: file for name, file in receipt.files.items() if name.startswith(f"{FOLDER}/")}
    download(store, [(folder / name, file) for name, file in of_first_stage.items()])
    return BuiltSegment(folder, receipt.counts, plan.next_ordinal, BuildCounts(), time.perf_counter())


def _kept_files(chosen: Sequence[Receipt]) -> dict[str, FileReceipt]:
    """Files that are as they were built, by their paths in the generation: all but first stages."""
    return {
        f"shards/{receipt.partition:05d}/{name}": file
        for receipt in chosen
        for name, file in receipt.files.items()
        if not name.startswith(f"{FOLDER}/")
    }


def _root(root: Root | None, manifest: Manifest, digest: str) -> Root:
    name = manifest.generation
    if root is None:
        return Root(new_token(), name, {name: digest}, int(name), manifest.next_ordinal, new_token())
    return root.changed(
        live=name,
        generations=root.generations | {name: digest},
        highest_generation=max(root.highest_generation, int(name)),
        next_ordinal=max(root.next_ordinal, manifest.next_ordinal),
    )
