"""Partitions: planned once, built any number of times, committed once; the same generation whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

import indexer.distributed.build_job
from indexer.build.index_job import Encoders, IndexReport
from indexer.corpus import RejectedLine
from indexer.distributed.build_job import build_partition
from indexer.distributed.commit_job import commit_partitions, drop_partitions
from indexer.distributed.places.folder import FolderPlace
from indexer.distributed.plan import read_plan
from indexer.distributed.plan_job import PlanReport, plan_partitions
from indexer.distributed.receipt import Receipt, read_receipt
from kalm_cache.errors import IndexMismatchError, StoreError, UsageError
from kalm_cache.generations.generation import open_current
from kalm_cache.settings import Settings, load_settings
from tests.indexer.changes import add, numbers_of, texts_of, valid
from tests.indexer.killed import commit_until_killed
from tests.indexer.sharded import MANY, answers_of, files_of, shards_of
from tests.indexes import build, lines_of

SHARDS = 3


def plan(
    index: Path,
    settings: Settings,
    encoders: Encoders,
    texts: dict[str, str] | Iterable[tuple[str, str]] = MANY,
    shards: int = SHARDS,
    rejected: list[RejectedLine] | None = None,
) -> PlanReport:
    rejects = [] if rejected is None else rejected
    watch = {"on_reject": rejects.append, "on_progress": lambda counts: None}
    return plan_partitions(lines_of(texts), index, settings, encoders, shards=shards, **watch)


def build_one(index: Path, partition: int, encoders: Encoders, **options: object) -> Receipt:
    options = {"on_progress": lambda counts: None, "encoders": encoders} | options
    return build_partition(FolderPlace(index), partition, load_settings(), **options)


def build_all(index: Path, encoders: Encoders, shards: int = SHARDS) -> list[Receipt]:
    return [build_one(index, partition, encoders) for partition in reversed(range(shards))]


def attempts_of(index: Path, partition: int) -> Path:
    (building,) = (index / "generations").glob("*.building")
    return building / "attempts" / f"{partition:05d}"


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `MANY` in three shards, built by `index --shards 3`."""
    folder = tmp_path_factory.mktemp("one process") / "index"
    build(folder, settings, MANY, encoders=encoders, shards=SHARDS)
    return folder


@pytest.fixture(scope="module")
def planned_once(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "index"
    plan(folder, settings, encoders)
    return folder


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory, planned_once: Path, encoders: Encoders) -> Path:
    folder = Path(shutil.copytree(planned_once, tmp_path_factory.mktemp("built") / "index"))
    build_all(folder, encoders)
    return folder


@pytest.fixture
def planned(planned_once: Path, tmp_path: Path) -> Path:
    """An index whose partitions are to be built."""
    return Path(shutil.copytree(planned_once, tmp_path / "index"))


@pytest.fixture
def built(built_once: Path, tmp_path: Path) -> Path:
    """An index whose partitions are built, and not committed."""
    return Path(shutil.copytree(built_once, tmp_path / "index"))


def same_as(index: Path, expected: Path) -> bool:
    """Whether two indexes have the same segments, byte for byte, and nothing else lies in them."""
    assert files_of(index) == files_of(expected)
    assert sorted(path.name for path in open_current(index).folder.iterdir()) == [
        "build.json",
        "manifest.json",
        "shards",
    ]
    assert [path.name for path in (index / "generations").iterdir()] == [open_current(index).name]
    return valid(index)


def test_partitions_make_byte_for_byte_what_one_process_makes(planned: Path, encoders: Encoders, in_one_process: Path):
    receipts = build_all(planned, encoders)
    assert sum(receipt.counts.passages for receipt in receipts) == len(MANY)
    report = commit_partitions(planned)
    assert (report.passages, report.encoded, report.generation) == (len(MANY), len(MANY), "000001")
    assert same_as(planned, in_one_process)
    assert answers_of(planned) == answers_of(in_one_process)


def test_a_plan_says_what_each_partition_gets_and_the_same_corpus_makes_the_same_plan(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path
):
    first, second = (plan(tmp_path / name, settings, encoders) for name in "ab")
    assert first.plan == second.plan
    assert dict(enumerate(first.partitions)) == shards_of(in_one_process)
    assert plan(tmp_path / "a", settings, encoders).plan == first.plan
    assert plan(tmp_path / "b", settings, encoders, MANY | {"m1": "other"}).plan != first.plan


def test_duplicates_over_partitions_are_reported_with_both_places_as_in_one_process(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    texts = [*MANY.items(), ("m3", "again"), ("twin10", "and again")]
    by_plan: list[RejectedLine] = []
    in_one: list[RejectedLine] = []
    report = plan(tmp_path / "plan", settings, encoders, texts, rejected=by_plan)
    build(tmp_path / "one", settings, texts, encoders=encoders, rejected=in_one)
    assert by_plan == in_one
    assert by_plan[0].reason.startswith("duplicate id, first at c:4;")
    assert (report.rejected, report.passages) == (2, len(MANY))
    build_all(tmp_path / "plan", encoders)
    assert commit_partitions(tmp_path / "plan").rejected == 2


def test_a_built_partition_is_not_built_again(built: Path, encoders: Encoders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexer.distributed.build_job, "build_shard", lambda *_, **__: pytest.fail("built again"))
    assert build_one(built, 1, encoders) == read_receipt(attempts_of(built, 1) / "0.json")


@pytest.mark.parametrize("last", [False, True], ids=["the zombie finishes first", "the zombie finishes last"])
def test_a_second_attempt_beside_one_that_still_runs_changes_nothing(
    planned: Path, encoders: Encoders, in_one_process: Path, last: bool
):
    receipts: list[Receipt] = []

    def meanwhile(counts: object) -> None:
        if not receipts:
            receipts.append(build_one(planned, 1, encoders, on_progress=lambda counts: None))
            if last:
                build_one(planned, 0, encoders)
                build_one(planned, 2, encoders)
                commit_partitions(planned)

    if last:  # what it would write to is gone, and what is published stays
        with pytest.raises(StoreError):
            build_one(planned, 1, encoders, on_progress=meanwhile)
    else:
        receipts.append(build_one(planned, 1, encoders, on_progress=meanwhile))
        assert [receipt.folder for receipt in receipts] == ["attempts/00001/1", "attempts/00001/0"]
        assert receipts[0].files == receipts[1].files
        build_all(planned, encoders)
        commit_partitions(planned)
    assert same_as(planned, in_one_process)


def test_a_receipt_that_is_given_twice_counts_once(built: Path, in_one_process: Path):
    files = [attempts_of(built, partition) / "0.json" for partition in (2, 0, 1, 0, 2)]
    commit_partitions(built, files)
    assert same_as(built, in_one_process)


def test_a_missing_partition_is_named_and_nothing_is_published(built: Path, encoders: Encoders, in_one_process: Path):
    (attempts_of(built, 1) / "0.json").unlink()
    with pytest.raises(StoreError, match="1 of 3 partitions are not built: 1; run kalm-cache partition build"):
        commit_partitions(built)
    assert not (built / "CURRENT").exists()
    assert build_one(built, 1, encoders).encoded == 0  # it was sealed already
    commit_partitions(built)
    assert same_as(built, in_one_process)


def test_a_receipt_of_another_plan_is_refused_or_passed_over(
    built: Path, settings: Settings, encoders: Encoders, tmp_path: Path
):
    stale = Path(shutil.copy(attempts_of(built, 0) / "0.json", tmp_path / "stale.json"))
    changed = MANY | {"m1": "another text"}
    plan(built, settings, encoders, changed)
    with pytest.raises(StoreError, match=r"stale\.json: is of plan [0-9a-f]{12}…, and [0-9a-f]{12}… is to be"):
        commit_partitions(built, [stale])
    with pytest.raises(StoreError, match="3 of 3 partitions are not built"):
        commit_partitions(built)
    receipts = build_all(built, encoders)
    assert sum(receipt.encoded for receipt in receipts) == 1  # what still fits was not encoded again
    commit_partitions(built)
    assert texts_of(built) == changed
    assert valid(built)


def test_a_file_that_is_not_as_its_receipt_says_is_named(built: Path):
    path = attempts_of(built, 2) / "0" / "states.lmdb"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"attempts/00002/0/states\.lmdb: is not as its receipt says"):
        commit_partitions(built)
    assert not (built / "CURRENT").exists()


def test_texts_that_are_not_what_was_planned_are_refused(planned: Path, encoders: Encoders):
    (building,) = (planned / "generations").glob("*.building")
    (building / "plan/00001.texts.zst").write_bytes(b"")
    with pytest.raises(StoreError, match="is not what was planned; run kalm-cache partition plan again"):
        build_one(planned, 1, encoders)


def test_partitions_and_plans_that_are_not_there_are_named(
    planned: Path, in_one_process: Path, encoders: Encoders, settings: Settings
):
    with pytest.raises(UsageError, match="partition 3: the plan has 0 to 2"):
        build_one(planned, 3, encoders)
    for job in (lambda: build_one(in_one_process, 0, encoders), lambda: commit_partitions(in_one_process)):
        with pytest.raises(StoreError, match="nothing is planned here, or it was committed"):
            job()
    with pytest.raises(StoreError, match="run again with --shards 3"):
        plan(planned, settings, encoders, shards=4)


def test_models_that_are_not_those_of_the_plan_are_refused(
    planned: Path,
):
    (building,) = (planned / "generations").glob("*.building")
    file = building / "plan/plan.json"
    made = read_plan(building)
    other = replace(made.template, fingerprint=replace(made.template.fingerprint, model="0" * 64))
    file.unlink()
    replace(made, template=other).write(building)
    with pytest.raises(IndexMismatchError, match="model 000000000000"):
        build_partition(FolderPlace(planned), 0, load_settings(device="cpu"), on_progress=lambda counts: None)


def test_a_build_in_a_scratch_folder_leaves_its_segment_in_the_index(
    planned: Path, encoders: Encoders, tmp_path: Path, in_one_process: Path
):
    scratch = tmp_path / "scratch"
    for partition in range(SHARDS):
        build_one(planned, partition, encoders, scratch=scratch)
    assert list(scratch.iterdir()) == []
    commit_partitions(planned)
    assert same_as(planned, in_one_process)


def test_a_killed_build_is_taken_up_by_the_next_which_encodes_the_rest(
    planned: Path, encoders: Encoders, in_one_process: Path
):
    def stop(counts: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_one(planned, 0, encoders, on_progress=stop)
    receipt = build_one(planned, 0, encoders)
    assert receipt.resumed > 0
    assert (receipt.folder, receipt.encoded + receipt.resumed) == ("attempts/00000/0", receipt.counts.passages)
    build_all(planned, encoders)
    commit_partitions(planned)
    assert same_as(planned, in_one_process)


def test_what_is_stored_already_is_copied_by_the_partitions(
    tmp_path: Path, settings: Settings, encoders: Encoders, in_one_process: Path
):
    index = tmp_path / "index"
    build(index, settings, MANY, encoders=encoders)
    changed = MANY | {"m1": "another text", "new": "a new one"}
    plan(index, settings, encoders, changed)
    assert sum(receipt.copied for receipt in build_all(index, encoders)) == len(MANY) - 1
    report = commit_partitions(index)
    assert (report.copied, report.encoded, report.generation) == (len(MANY) - 1, 2, "000002")
    assert texts_of(index) == changed
    assert open_current(index).manifest.parent == "000001"
    assert {doc_id: number for doc_id, number in numbers_of(index).items() if doc_id not in ("m1", "new")}.items() <= (
        numbers_of(in_one_process).items()
    )
    assert valid(index)


def test_nothing_is_added_between_plan_and_commit(tmp_path: Path, settings: Settings, encoders: Encoders):
    index = tmp_path / "index"
    build(index, settings, MANY, encoders=encoders)
    plan(index, settings, encoders)
    with pytest.raises(StoreError, match="an unfinished `kalm-cache index`"):
        add(index, settings, encoders, {"new": "a new one"})


COMMIT_KILLS = [
    ("indexer.distributed.commit_job:link_or_copy", 9),
    ("kalm_cache.first_stage.bm25.collection:publish_file", 2),
    ("indexer.distributed.commit_job:rename_durably", 2),  # attempts are put aside, the plan is not
    ("indexer.distributed.commit_job:receipts", 1),
    ("kalm_cache.generations.publish:rename_durably", 1),
    ("kalm_cache.generations.current:write_atomically", 1),
]


@pytest.mark.parametrize(("call", "nth"), COMMIT_KILLS)
def test_a_killed_commit_is_finished_by_the_same_commands(
    built: Path, settings: Settings, encoders: Encoders, in_one_process: Path, call: str, nth: int
):
    commit_until_killed(built, call, nth)
    try:
        report: IndexReport | None = commit_partitions(built)
    except StoreError:  # its attempts are given up, or it was published already
        report = None
    if report is None and not (built / "CURRENT").exists():
        plan(built, settings, encoders)
        assert sum(receipt.encoded for receipt in build_all(built, encoders)) == 0
        commit_partitions(built)
    assert same_as(built, in_one_process)


def test_a_plan_that_is_given_up_leaves_nothing_and_stands_in_nobodys_way(
    built: Path, settings: Settings, encoders: Encoders
):
    report = drop_partitions(built)
    assert (report.partitions, report.built) == (SHARDS, SHARDS)
    assert list((built / "generations").iterdir()) == []
    with pytest.raises(StoreError, match="nothing is planned here"):
        drop_partitions(built)
    build(built, settings, {"new": "a new one"}, encoders=encoders)
    assert texts_of(built) == {"new": "a new one"}


def test_an_attempt_at_a_plan_that_is_given_up_ends_with_an_error(planned: Path, encoders: Encoders):
    with pytest.raises(StoreError):
        build_one(planned, 0, encoders, on_progress=lambda counts: give_up(planned))
    assert list((planned / "generations").iterdir()) == []


def give_up(index: Path) -> None:
    if list((index / "generations").iterdir()):
        drop_partitions(index)
