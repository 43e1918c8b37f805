"""Index jobs that die: nothing is lost or done twice, and the end is as if they had not."""

from __future__ import annotations

import signal
from pathlib import Path

import lmdb
import pytest

from indexer.build.index_job import Encoders, run_index_job
from indexer.build.unfinished.resume_log import RESUME_LOG_FILE
from kalm_cache.errors import CorpusError, IndexMismatchError, StoreError
from kalm_cache.settings import Settings
from kalm_cache.storage.passage_store import PassageStore
from tests.indexer.jobs import LONGER, content, interrupt, passing, records_of, stored_ids
from tests.indexer.killed import run_until_killed
from tests.indexes import TEXTS, build, lines_of, settings_for, shard_of

pytestmark = pytest.mark.usefixtures("small_windows")
WRITE = "indexer.build.unfinished.resume_log:ResumeLog.write"
IN_THREADS = ["indexer.build.overlap:encode", "indexer.build.overlap:finish"]  # not called in the main one
KILLS = [
    # the job calls each of these at least once; writes are one for each batch
    *((call, 4) for call in IN_THREADS),
    (WRITE, 1),
    (WRITE, 4),
    ("indexer.build.unfinished.accepted_passages:AcceptedPassages.accept", 9),  # in a later window
    ("indexer.build.seal:StoreWriter", 1),
    ("kalm_cache.storage.store_writer:_publish", 2),  # one of the two sealed files is in its place
    ("kalm_cache.storage.store_writer:write_atomically", 1),
    ("kalm_cache.first_stage.dense.dense_index:DenseIndex.build", 1),
    ("kalm_cache.first_stage.bm25.bm25_index:publish_folder", 1),
    ("indexer.build.build:_drop_leftovers", 1),
    ("indexer.build.build:receipts", 1),  # staging is gone, the manifest is not there yet
    ("kalm_cache.storage.durable:publish_file", 2),  # the manifest is written beside its place
    (
        "kalm_cache.generations.publish:rename_durably",
        1,
    ),  # the manifest is there, the folder still has its building name
]


@pytest.mark.parametrize(("call", "nth"), KILLS)
def test_a_killed_job_encodes_nothing_twice_and_ends_like_one_that_was_not_killed(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, call: str, nth: int
):
    index = tmp_path / "index"
    run_until_killed(index, settings, LONGER, call, nth, signal.SIGKILL)
    stored = stored_ids(index)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (len(stored), len(LONGER) - len(stored))
    assert (report.generation, report.copied, report.deleted) == ("000001", 0, 0)
    assert content(index) == content(undisturbed)
    assert passing(index)


def test_a_job_may_be_killed_again_and_again(tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path):
    index, stored = tmp_path / "index", []
    for nth in (2, 3, 1):
        run_until_killed(index, settings, LONGER, WRITE, nth, signal.SIGKILL)
        stored.append(len(stored_ids(index)))
    assert 0 < stored[0] < stored[1] == stored[2] < len(LONGER)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (stored[-1], len(LONGER) - stored[-1])
    assert content(index) == content(undisturbed)


def test_a_job_killed_before_current_is_written_is_copied_by_the_next(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = tmp_path / "index"
    run_until_killed(index, settings, LONGER, "kalm_cache.generations.current:write_atomically", 1, signal.SIGKILL)
    assert not (index / "CURRENT").exists()
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.generation, report.copied, report.encoded) == ("000002", len(LONGER), 0)
    assert content(index) == content(undisturbed)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("call", [*IN_THREADS, WRITE])
def test_an_interrupted_job_ends_without_its_threads_and_goes_on_where_it_stopped(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, call: str, sign: int
):
    index = tmp_path / "index"
    run_until_killed(index, settings, LONGER, call, 4, sign)
    stored = stored_ids(index)
    assert 0 < len(stored) < len(LONGER)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (len(stored), len(LONGER) - len(stored))
    assert content(index) == content(undisturbed)


def test_progress_counts_what_is_stored_after_every_batch(tmp_path: Path, settings: Settings, encoders: Encoders):
    seen = []
    run_index_job(
        lines_of(LONGER),
        tmp_path / "index",
        settings,
        encoders,
        on_reject=print,
        on_progress=lambda progress: seen.append((progress.done, progress.tokens)),
    )
    assert seen == sorted(seen)
    assert seen[-1] == (30, sum(record.tokens for record in records_of(tmp_path / "index").values()))
    assert len(seen) > 8


def test_a_corpus_that_breaks_off_leaves_a_build_that_goes_on(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    def broken():
        yield from lines_of(LONGER)[:20]
        raise CorpusError("c.jsonl.gz: ends in the middle")

    with pytest.raises(CorpusError):
        run_index_job(
            broken(), tmp_path / "index", settings, encoders, on_reject=print, on_progress=lambda progress: None
        )
    report = build(tmp_path / "index", settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (16, 14)  # two whole windows
    assert content(tmp_path / "index") == content(undisturbed)


def test_an_unfinished_build_with_other_settings_is_refused_with_both_sides_and_the_way_out(
    tmp_path: Path, settings: Settings, encoders: Encoders, mini_folder: Path, embedder_folder: Path
):
    interrupt(tmp_path / "index", settings, encoders, LONGER, after=4)
    other = settings_for(mini_folder, embedder_folder, chunk_size=8, codec="int8")
    with pytest.raises(IndexMismatchError) as raised:
        build(tmp_path / "index", other, LONGER)
    assert "chunk_size 4 there, 8 here; codec fp16 there, int8 here" in str(raised.value)
    assert str(tmp_path / "index/generations/000001.building") in str(raised.value)
    assert build(tmp_path / "index", settings, LONGER, encoders=encoders).resumed > 0


def test_settings_are_still_compared_when_only_the_publication_is_missing(
    tmp_path: Path, settings: Settings, mini_folder: Path, embedder_folder: Path
):
    run_until_killed(
        tmp_path / "index", settings, TEXTS, "kalm_cache.generations.publish:rename_durably", 1, signal.SIGKILL
    )
    with pytest.raises(IndexMismatchError, match="chunk_size 4 there, 8 here"):
        build(tmp_path / "index", settings_for(mini_folder, embedder_folder, chunk_size=8), TEXTS)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_text("[]")])
def test_an_unfinished_build_that_does_not_say_its_settings_is_refused(
    tmp_path: Path, settings: Settings, encoders: Encoders, spoil
):
    interrupt(tmp_path / "index", settings, encoders, LONGER, after=4)
    spoil(tmp_path / "index/generations/000001.building/build.json")
    with pytest.raises(StoreError, match="to start over"):
        build(tmp_path / "index", settings, LONGER, encoders=encoders)


def test_a_corpus_that_changed_meanwhile_is_what_gets_published(tmp_path: Path, settings: Settings, encoders: Encoders):
    index = tmp_path / "index"
    interrupt(index, settings, encoders, LONGER, after=20)
    stored = stored_ids(index)
    edited = {doc_id: "edited " + text for doc_id, text in LONGER.items() if doc_id in ("p1", "p3")}
    changed = {doc_id: text for doc_id, text in (LONGER | edited).items() if doc_id not in ("p0", "p5")}
    assert {"p0", "p1", "p3", "p5"} <= stored
    report = build(index, settings, changed, encoders=encoders)
    assert (report.resumed, report.deleted, report.passages) == (len(stored) - 4, 2, 28)
    assert report.encoded == 28 - report.resumed
    with PassageStore(shard_of(index)) as store:
        assert store.texts(["p0", "p1", "p3", "p5", "p7"]) == [None, edited["p1"], edited["p3"], None, LONGER["p7"]]
    assert passing(index)


def test_a_text_that_was_staged_when_its_passage_was_stored_otherwise_is_staged_again(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = tmp_path / "index"
    interrupt(index, settings, encoders, LONGER, after=30)  # all are stored
    edited = LONGER | {"p7": "Honey bees dance"}
    run_until_killed(index, settings, edited, WRITE, 1, signal.SIGKILL)
    report = build(index, settings, LONGER, encoders=encoders)  # and the edit is taken back
    assert (report.resumed, report.encoded) == (30, 0)
    assert content(index) == content(undisturbed)


def test_records_and_vectors_damaged_in_an_unfinished_build_are_made_again_under_one_number(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    index = tmp_path / "index"
    interrupt(index, settings, encoders, LONGER, after=10)
    with lmdb.open(str(shard_of(index, "000001.building") / RESUME_LOG_FILE), subdir=False, max_dbs=3) as raw:
        records, vectors = raw.open_db(b"records"), raw.open_db(b"vectors")
        with raw.begin(write=True) as txn:
            txn.put(b"p2", txn.get(b"p2", db=records)[:-1] + b"!", db=records)
            txn.put(b"p3", txn.get(b"p3", db=vectors)[:-1] + b"!", db=vectors)
    stored = stored_ids(index)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (len(stored) - 2, 32 - len(stored))
    assert passing(index)
