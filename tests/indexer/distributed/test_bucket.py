"""Partitions in an object store: no folder is shared, and the published generation is that of one process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from indexer.build.index_job import Encoders
from indexer.distributed.bucket_jobs import commit_in_bucket, drop_in_bucket, plan_in_bucket
from indexer.distributed.build_job import build_partition
from indexer.distributed.places.bucket import BucketPlace
from indexer.distributed.plan_job import PlanReport
from indexer.distributed.receipt import Receipt
from kalm_cache.errors import IndexConflictError, StoreError
from kalm_cache.generations.current import CURRENT
from kalm_cache.generations.generation import open_current
from kalm_cache.generations.remote import push as pushing
from kalm_cache.generations.remote.collect import collect
from kalm_cache.generations.remote.copies import CopyCache, RemoteCopy
from kalm_cache.generations.remote.push import push
from kalm_cache.generations.remote.root import FILES, OPEN_PLAN, PARTITIONS, new_token, require_root
from kalm_cache.settings import Settings, load_settings
from tests.indexer.changes import texts_of, valid
from tests.indexer.sharded import MANY, answers_of, files_of
from tests.indexes import build, lines_of
from tests.object_store.places import BUCKET, Place, S3Place, file_place, memory_place, s3_server
from tests.waiting import wait_for

SHARDS = 3
Machine = Callable[[], BucketPlace]


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `MANY` in three shards, built by `index --shards 3`."""
    folder = tmp_path_factory.mktemp("one process") / "index"
    build(folder, settings, MANY, encoders=encoders, shards=SHARDS)
    return folder


@pytest.fixture(params=["memory"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """An empty place; of memory, unless a test asks for others."""
    if request.param == "memory":
        yield memory_place()
    elif request.param == "file":
        yield file_place(tmp_path / "store")
    else:
        pytest.importorskip("moto.moto_server.threaded_moto_server")
        with s3_server() as (host, port):
            yield S3Place(f"s3://{BUCKET}/{uuid.uuid4().hex}", endpoint=f"http://{host}:{port}")


@pytest.fixture
def machine(bucket: Place, tmp_path: Path) -> Machine:
    """Makes machines, each with a disk of its own; all that they share is the bucket."""

    def boot() -> BucketPlace:
        cache = CopyCache(tmp_path / uuid.uuid4().hex, 1 << 30)
        return BucketPlace(RemoteCopy(bucket.location, cache, bucket.store()))

    return boot


def plan(place: BucketPlace, settings: Settings, encoders: Encoders, texts: dict[str, str] = MANY) -> PlanReport:
    watch = {"on_reject": print, "on_progress": lambda counts: None}
    return plan_in_bucket(lines_of(texts), place, settings, encoders, shards=SHARDS, **watch)


def build_one(place: BucketPlace, partition: int, encoders: Encoders, **options: object) -> Receipt:
    options = {"on_progress": lambda counts: None, "encoders": encoders} | options
    return build_partition(place, partition, load_settings(), **options)


def build_all(machine: Machine, encoders: Encoders) -> list[Receipt]:
    """Every partition, each on a machine that has seen nothing before."""
    return [build_one(machine(), partition, encoders) for partition in reversed(range(SHARDS))]


def pulled(machine: Machine) -> Path:
    """The live generation, as a machine that knows nothing gets it."""
    copy = machine().copy
    copy.refresh()
    return copy.reading


@pytest.mark.parametrize("bucket", ["memory", "file", "s3"], indirect=True)
def test_machines_that_share_a_bucket_alone_make_what_one_process_makes(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, in_one_process: Path
):
    planner = machine()
    report = plan(planner, settings, encoders)
    assert (report.passages, report.index) == (len(MANY), bucket.url)
    assert list((planner.copy.writing / "generations").iterdir()) == []
    build_all(machine, encoders)
    committer = machine()
    published = commit_in_bucket(committer)
    assert (published.passages, published.encoded, published.generation) == (len(MANY), len(MANY), "000001")
    assert not list(committer.copy.home.rglob("states.lmdb"))  # it had no states at hand
    index = pulled(machine)
    assert files_of(index) == files_of(in_one_process)
    assert answers_of(index) == answers_of(in_one_process)
    assert valid(index)
    assert bucket.store().list(PARTITIONS) == {}
    collect(bucket.store())
    assert len(bucket.store().list(FILES)) == len(set(open_current(index).manifest.files.values())) + 1


def test_a_second_attempt_and_a_late_one_change_nothing(
    machine: Machine, settings: Settings, encoders: Encoders, in_one_process: Path
):
    plan(machine(), settings, encoders)

    def commit_meanwhile(counts: object) -> None:
        if not published:
            published.extend(build_all(machine, encoders))
            commit_in_bucket(machine())

    published: list[Receipt] = []
    with pytest.raises(StoreError, match="nothing is planned here, or it was committed"):
        build_one(machine(), 1, encoders, on_progress=commit_meanwhile)
    index = pulled(machine)
    assert files_of(index) == files_of(in_one_process)
    assert valid(index)


def test_a_partition_with_a_receipt_is_not_built_again_and_of_two_receipts_one_counts(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, in_one_process: Path
):
    plan(machine(), settings, encoders)
    receipts = build_all(machine, encoders)
    assert build_one(machine(), 0, encoders, on_progress=lambda counts: pytest.fail("built again")) == receipts[-1]
    store = bucket.store()
    (name,) = store.list(f"{PARTITIONS}/{receipts[0].plan}/00000")
    found = store.get(name)
    assert found is not None
    store.put(name + "0", found.content)
    store.put(f"{PARTITIONS}/{receipts[0].plan}/00001/cut", b"{")
    commit_in_bucket(machine())
    assert files_of(pulled(machine)) == files_of(in_one_process)


def test_what_a_lost_machine_had_not_handed_in_is_built_by_another(
    machine: Machine, settings: Settings, encoders: Encoders, in_one_process: Path
):
    plan(machine(), settings, encoders)
    lost = machine()

    def stop(counts: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_one(lost, 2, encoders, on_progress=stop)
    with pytest.raises(StoreError, match="3 of 3 partitions are not built: 0, 1, 2;"):
        commit_in_bucket(machine())
    assert build_one(lost, 2, encoders).resumed > 0  # it was not lost after all
    build_all(machine, encoders)
    commit_in_bucket(machine())
    assert files_of(pulled(machine)) == files_of(in_one_process)


def test_a_file_that_the_store_lost_is_built_again(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, in_one_process: Path
):
    plan(machine(), settings, encoders)
    receipts = build_all(machine, encoders)
    bucket.store().delete([f"{FILES}/{receipts[0].files['states.lmdb'].sha256}"])
    with pytest.raises(StoreError, match="1 of 3 partitions are not built: 2;"):
        commit_in_bucket(machine())
    build_one(machine(), 2, encoders)
    commit_in_bucket(machine())
    assert files_of(pulled(machine)) == files_of(in_one_process)


def test_a_commit_that_died_after_its_swap_is_finished_by_the_next(
    machine: Machine, settings: Settings, encoders: Encoders, in_one_process: Path, monkeypatch: pytest.MonkeyPatch
):
    plan(machine(), settings, encoders)
    build_all(machine, encoders)

    def die(self: BucketPlace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BucketPlace, "forget", die)
        with pytest.raises(KeyboardInterrupt):
            commit_in_bucket(machine())
    assert commit_in_bucket(machine()).generation == "000001"
    assert files_of(pulled(machine)) == files_of(in_one_process)
    with pytest.raises(StoreError, match="nothing is planned here, or it was committed"):
        commit_in_bucket(machine())


def test_of_a_commit_and_another_writer_the_faster_one_wins(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, tmp_path: Path
):
    plan(machine(), settings, encoders)
    build_all(machine, encoders)
    build(tmp_path / "other", settings, {"other": "of another writer"}, encoders=encoders)
    push(bucket.store(), tmp_path / "other")
    with pytest.raises(IndexConflictError, match="another writer published since the plan, and it won"):
        commit_in_bucket(machine())
    assert texts_of(pulled(machine)) == {"other": "of another writer"}


def test_what_is_stored_already_is_copied_from_the_shards_that_have_it(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, in_one_process: Path, tmp_path: Path
):
    push(bucket.store(), in_one_process)
    changed = {one: text for one, text in MANY.items() if one != "m2"} | {"m1": "another text", "new": "a new one"}
    assert plan(machine(), settings, encoders, changed).passages == len(changed)
    receipts = build_all(machine, encoders)
    assert [sum(getattr(one, name) for one in receipts) for name in ("copied", "encoded")] == [len(MANY) - 2, 2]
    report = commit_in_bucket(machine())
    assert (report.generation, report.copied) == ("000002", len(MANY) - 2)
    index = pulled(machine)
    manifest = open_current(index).manifest
    assert (manifest.parent, manifest.deleted, texts_of(index)) == ("000001", 1, changed)
    assert valid(index)


def test_while_partitions_are_planned_gc_removes_no_file_and_other_plans_are_refused(
    machine: Machine, bucket: Place, settings: Settings, encoders: Encoders, in_one_process: Path
):
    push(bucket.store(), in_one_process)
    plan(machine(), settings, encoders, MANY | {"m1": "another text"})
    build_one(machine(), 0, encoders)
    before = bucket.store().list(FILES)
    assert collect(bucket.store()).objects == 0
    assert bucket.store().list(FILES).keys() == before.keys()
    with pytest.raises(IndexConflictError, match="partitions of another index job are planned"):
        plan_in_bucket(
            *(lines_of(MANY), machine(), settings, encoders), shards=2, on_reject=print, on_progress=lambda counts: None
        )
    report = drop_in_bucket(machine())
    assert (report.index, report.partitions, report.built) == (bucket.url, SHARDS, 1)
    assert bucket.store().list(PARTITIONS) == {}
    assert collect(bucket.store()).objects > 0
    assert valid(pulled(machine))


def test_a_plan_waits_for_a_gc_that_does_not_see_it(
    machine: Machine,
    bucket: Place,
    settings: Settings,
    encoders: Encoders,
    in_one_process: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pushing, "LOOK_SECONDS", 0.01)
    store = bucket.store()
    push(store, in_one_process)
    root, found = require_root(store)
    assert store.swap(CURRENT, replace(root, collecting=new_token()).to_bytes(), found)  # as a gc begins
    planner = threading.Thread(target=plan, args=(machine(), settings, encoders, MANY | {"m1": "another text"}))
    planner.start()
    wait_for(lambda: store.get(OPEN_PLAN) is not None)
    objects = store.list(FILES).keys()
    planner.join(0.2)
    assert planner.is_alive()
    assert store.list(FILES).keys() == objects
    assert store.swap(CURRENT, root.to_bytes(), store.get(CURRENT))  # as it ends
    planner.join()
    assert len(store.list(FILES).keys() - objects) == SHARDS
    assert collect(store).objects == 0
