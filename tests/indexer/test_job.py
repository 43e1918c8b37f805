"""The index job: what it stores, what it rejects, and that nothing is lost or done twice when it dies."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import faiss
import lmdb
import numpy as np
import pytest

import indexer.intake
import indexer.shard
import indexer.shard_pass
from indexer.corpus import CorpusLine, RejectedLine
from indexer.job import Encoders, load_encoders, run_index_job
from indexer.shard import WORKING_FILE
from indexer.verify import verify_index
from indexer.working import WorkingFile
from kalm_cache import PassageIndex
from kalm_cache.current import write_current
from kalm_cache.errors import CheckpointError, CorpusError, IndexLockedError, IndexMismatchError, StoreError, UsageError
from kalm_cache.generation import open_current
from kalm_cache.locks import build_lock
from kalm_cache.passage import Passage
from kalm_cache.record import Record
from kalm_cache.settings import Settings
from kalm_cache.store import PassageStore
from tests import stores
from tests.indexer.killed import WINDOW, run_until_killed
from tests.indexes import TEXTS, build, lines_of, settings_for, shard_of
from tests.stores import read_contents
from tests.texts import long_text

LONGER = {f"p{i}": long_text(5 + 7 * i % 40, seed=100 + i) for i in range(30)}  # four windows of eight


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer.intake, "WINDOW", WINDOW)
    monkeypatch.setattr(indexer.shard_pass, "WINDOW", WINDOW)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, settings: Settings, encoders: Encoders) -> Path:
    """An index of `LONGER` that was built in one go."""
    folder = tmp_path_factory.mktemp("undisturbed") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexer.intake, "WINDOW", WINDOW)
        patch.setattr(indexer.shard_pass, "WINDOW", WINDOW)
        build(folder, settings, LONGER, encoders=encoders)
    return folder


def content(index: Path) -> dict[str, object]:
    """Everything that a reader can find in the live generation, byte by byte where bytes are kept."""
    shard = open_current(index).shard
    dense = faiss.read_index(str(shard / "first_stage" / "dense.faiss"))
    bm25 = {path.name: path.read_bytes() for path in (shard / "first_stage" / "bm25").iterdir()}
    return asdict(read_contents(shard)) | {
        "dense numbers": faiss.vector_to_array(dense.id_map).tolist(),
        "dense vectors": dense.index.reconstruct_n(0, dense.ntotal).tolist(),
        "bm25": bm25,
    }


def records_of(index: Path) -> dict[str, Record]:
    return stores.records_of(open_current(index).shard)


def stored_ids(index: Path) -> set[str]:
    """What the unfinished build of an index has encoded."""
    (building,) = (index / "generations").glob("*.building")
    shard = building / "shards" / "00000"
    if not (shard / WORKING_FILE).exists():  # sealed, and not published
        return set(stores.records_of(shard))
    with WorkingFile(shard / WORKING_FILE) as working:
        return {key.decode() for key in working.keys()}  # noqa: SIM118 (not a dict)


def passing(index: Path) -> bool:
    report = verify_index(index)
    assert report.damaged == []
    return report.ok


# What is stored


def test_a_job_publishes_every_passage_and_reports_what_it_did(tmp_path: Path, settings: Settings, encoders: Encoders):
    report = build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    assert (report.generation, report.passages, report.encoded) == ("000001", 12, 12)
    assert (report.resumed, report.copied, report.deleted, report.rejected) == (0, 0, 0, 0)
    manifest = open_current(tmp_path / "index").manifest
    assert manifest.counts.passages == 12
    assert report.tokens == manifest.counts.tokens
    assert report.file_bytes == sum(receipt.bytes for receipt in manifest.files.values())
    assert manifest.fingerprint == encoders.fingerprint
    assert manifest.parent is None
    assert passing(tmp_path / "index")


def test_records_say_what_their_passages_are(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    tokens = dict(zip(TEXTS, encoders.passage_side.tokenize(list(TEXTS.values())), strict=True))
    for doc_id, record in records_of(tmp_path / "index").items():
        assert (record.tokens, record.ratio, record.width) == (len(tokens[doc_id].ids), 4, 64)
        assert record.rows == -(-record.tokens // 4)
        assert not record.truncated
        identity = read_contents(shard_of(tmp_path / "index")).identity(doc_id)
        assert identity.content_hash == Passage(doc_id, TEXTS[doc_id]).content_hash()


def test_nothing_of_the_building_is_left_behind(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, TEXTS, encoders=encoders)
    found = {str(path.relative_to(tmp_path / "index")) for path in (tmp_path / "index").rglob("*") if path.is_file()}
    assert {name for name in found if "bm25" not in name} == {
        "CURRENT",
        "JOURNAL",
        "LOCK",
        "generations/000001/build.json",
        "generations/000001/manifest.json",
        "generations/000001/shards/00000/first_stage/dense.faiss",
        "generations/000001/shards/00000/first_stage/dense.json",
        "generations/000001/shards/00000/passages.lmdb",
        "generations/000001/shards/00000/states.lmdb",
        "generations/000001/shards/00000/store.json",
    }


def test_an_empty_corpus_makes_an_empty_index(tmp_path: Path, settings: Settings, encoders: Encoders):
    report = build(tmp_path / "index", settings, {}, encoders=encoders)
    assert (report.passages, report.tokens, report.payload_bytes) == (0, 0, 0)
    assert passing(tmp_path / "index")


def test_a_corpus_of_empty_texts_is_indexed(tmp_path: Path, settings: Settings, encoders: Encoders):
    build(tmp_path / "index", settings, {"empty": "", "space": " "}, encoders=encoders)
    assert {record.rows > 0 for record in records_of(tmp_path / "index").values()} == {True}
    assert passing(tmp_path / "index")


def test_cut_passages_are_counted(tmp_path: Path, mini_folder: Path, embedder_folder: Path):
    settings = settings_for(mini_folder, embedder_folder, max_length=12)
    report = build(tmp_path / "index", settings, TEXTS)
    cut = {doc_id for doc_id, record in records_of(tmp_path / "index").items() if record.truncated}
    assert report.truncated == len(cut) > 0
    assert max(record.tokens for record in records_of(tmp_path / "index").values()) == 12


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_without_bm25_and_with_other_codecs_the_index_is_whole(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, codec: str
):
    build(tmp_path / "index", settings_for(mini_folder, embedder_folder, codec=codec, bm25=False), TEXTS)
    assert not (shard_of(tmp_path / "index") / "first_stage" / "bm25").exists()
    assert passing(tmp_path / "index")


def test_without_texts_no_passage_text_is_anywhere_in_the_published_folder(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path
):
    texts = TEXTS | {"rare": "Gravity Rarewordx attracts bodies"}
    for store_text in (True, False):
        index = tmp_path / str(store_text)
        build(index, settings_for(mini_folder, embedder_folder, store_text=store_text), texts)
        holding = [path for path in index.rglob("*") if path.is_file() and b"rarewordx" in path.read_bytes().lower()]
        # BM25's vocabulary lists single lower-case terms, by themselves and in no order of a text
        terms = [path for path in holding if path.name == "terms.npy"]
        assert [path for path in holding if path not in terms] == (
            [shard_of(index) / "passages.lmdb"] if store_text else []
        )
        assert b"Rarewordx" not in b"".join(path.read_bytes() for path in terms)


# What is rejected


def test_duplicates_within_and_across_windows_are_reported_with_where_the_first_one_is(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    pairs = [*LONGER.items()]
    pairs.insert(3, ("p1", "again, in the same window"))  # line 4
    pairs.append(("p2", "again, windows later"))
    pairs.append(("p29", LONGER["p29"]))  # the same text is a duplicate too
    rejected: list[RejectedLine] = []
    report = build(tmp_path / "index", settings, pairs, encoders=encoders, rejected=rejected)
    reason = "duplicate id, first at {}; the first one is kept: give each passage an id of its own"
    assert rejected == [
        RejectedLine("c:4", reason.format("c:2"), "p1", "again, in the same window"),
        RejectedLine("c:32", reason.format("c:3"), "p2", "again, windows later"),
        RejectedLine("c:33", reason.format("c:31"), "p29", LONGER["p29"][:200]),
    ]
    assert (report.passages, report.rejected) == (30, 3)
    with PassageStore(shard_of(tmp_path / "index")) as store:
        assert store.texts(["p1", "p2"]) == [LONGER["p1"], LONGER["p2"]]


def test_rejected_lines_are_handed_on_in_order_and_counted(tmp_path: Path, settings: Settings, encoders: Encoders):
    bad = [RejectedLine(f"c:{i}", "no id", None, "{}") for i in (2, 4)]
    lines = [CorpusLine(Passage("a", "x"), "c:1"), bad[0], CorpusLine(Passage("b", "y"), "c:3"), bad[1]]
    rejected: list[RejectedLine] = []
    report = run_index_job(
        lines, tmp_path / "index", settings, encoders, on_reject=rejected.append, on_progress=lambda progress: None
    )
    assert rejected == bad
    assert (report.passages, report.rejected) == (2, 2)


def test_a_job_in_a_folder_where_another_one_builds_is_refused(tmp_path: Path, settings: Settings, encoders: Encoders):
    with build_lock(tmp_path / "index"), pytest.raises(IndexLockedError):
        build(tmp_path / "index", settings, TEXTS, encoders=encoders)


@pytest.mark.parametrize("changes", [{"codec": "fp8"}, {"device": "tpu9"}])
def test_an_unknown_codec_or_device_is_a_usage_error(mini_folder: Path, embedder_folder: Path, changes: dict[str, str]):
    with pytest.raises(UsageError, match=r"not known|not one that torch knows"):
        load_encoders(settings_for(mini_folder, embedder_folder, **changes))


def test_a_model_that_is_not_there_is_a_checkpoint_error(mini_folder: Path, embedder_folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        load_encoders(settings_for(tmp_path / "empty", embedder_folder))
    with pytest.raises(CheckpointError):
        load_encoders(settings_for(mini_folder, tmp_path / "empty"))


# Death and resumption

KILLS = [
    # the job calls each of these at least once; writes are one for each batch
    ("indexer.working:WorkingFile.write", 1),
    ("indexer.working:WorkingFile.write", 4),
    ("indexer.staging:Staging.accept", 9),  # in a later window
    ("indexer.seal:StoreWriter", 1),
    ("kalm_cache.store_writer:_publish", 2),  # one of the two sealed files is in its place
    ("kalm_cache.store_writer:write_atomically", 1),
    ("kalm_cache.first_stage.dense:DenseIndex.build", 1),
    ("kalm_cache.first_stage.bm25:publish_folder", 1),
    ("indexer.shard:_drop_leftovers", 1),
    ("indexer.base:receipts", 1),  # staging is gone, the manifest is not there yet
    ("kalm_cache.durable:publish_file", 2),  # the manifest is written beside its place
    ("kalm_cache.generation:rename_durably", 1),  # the manifest is there, the folder still has its building name
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
        run_until_killed(index, settings, LONGER, "indexer.working:WorkingFile.write", nth, signal.SIGKILL)
        stored.append(len(stored_ids(index)))
    assert 0 < stored[0] < stored[1] == stored[2] < len(LONGER)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (stored[-1], len(LONGER) - stored[-1])
    assert content(index) == content(undisturbed)


def test_a_job_killed_before_current_is_written_is_copied_by_the_next(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = tmp_path / "index"
    run_until_killed(index, settings, LONGER, "kalm_cache.current:write_atomically", 1, signal.SIGKILL)
    assert not (index / "CURRENT").exists()
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.generation, report.copied, report.encoded) == ("000002", len(LONGER), 0)
    assert content(index) == content(undisturbed)


def test_an_interrupted_job_goes_on_where_it_stopped(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = tmp_path / "index"
    run_until_killed(index, settings, LONGER, "indexer.working:WorkingFile.write", 4, signal.SIGINT)
    stored = stored_ids(index)
    assert 0 < len(stored) < len(LONGER)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (len(stored), len(LONGER) - len(stored))
    assert content(index) == content(undisturbed)


def interrupt(index: Path, settings: Settings, encoders: Encoders, texts: dict[str, str], after: int) -> None:
    """Leave an unfinished build with the first `after` passages or a few more."""

    def stop(progress: indexer.shard.Progress) -> None:
        if progress.done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_index_job(lines_of(texts), index, settings, encoders, on_reject=print, on_progress=stop)


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
    run_until_killed(tmp_path / "index", settings, TEXTS, "kalm_cache.generation:rename_durably", 1, signal.SIGKILL)
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
    run_until_killed(index, settings, edited, "indexer.working:WorkingFile.write", 1, signal.SIGKILL)
    report = build(index, settings, LONGER, encoders=encoders)  # and the edit is taken back
    assert (report.resumed, report.encoded) == (30, 0)
    assert content(index) == content(undisturbed)


def test_records_and_vectors_damaged_in_an_unfinished_build_are_made_again_under_one_number(
    tmp_path: Path, settings: Settings, encoders: Encoders
):
    index = tmp_path / "index"
    interrupt(index, settings, encoders, LONGER, after=10)
    with lmdb.open(str(shard_of(index, "000001.building") / WORKING_FILE), subdir=False, max_dbs=3) as raw:
        records, vectors = raw.open_db(b"records"), raw.open_db(b"vectors")
        with raw.begin(write=True) as txn:
            txn.put(b"p2", txn.get(b"p2", db=records)[:-1] + b"!", db=records)
            txn.put(b"p3", txn.get(b"p3", db=vectors)[:-1] + b"!", db=vectors)
    stored = stored_ids(index)
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.encoded) == (len(stored) - 2, 32 - len(stored))
    assert passing(index)


# Indexing again


def test_indexing_again_copies_unchanged_records_and_encodes_the_others(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    changed = {doc_id: text for doc_id, text in LONGER.items() if doc_id != "p4"} | {"p6": "edited", "new": "a new one"}
    report = build(index, settings, changed, encoders=encoders)
    assert (report.generation, report.passages, report.copied, report.encoded) == ("000002", 30, 28, 2)
    assert (report.resumed, report.deleted) == (0, 0)
    assert open_current(index).manifest.parent == "000001"
    before, after = content(undisturbed), content(index)
    same = [doc_id.encode() for doc_id in changed if changed[doc_id] == LONGER.get(doc_id)]
    for database in ("blocks", "passages"):
        assert {key: after[database][key] for key in same} == {key: before[database][key] for key in same}
        assert b"p4" not in after[database]
    new = {read_contents(open_current(index).shard).identity(doc_id).number for doc_id in ("p6", "new")}
    assert new == {30, 31}  # numbers are not given again, not even for an edited text
    assert passing(index)


def test_indexing_the_same_corpus_again_gives_the_same_content(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.copied, report.encoded) == (30, 0)
    assert content(index) == content(undisturbed)


def test_a_published_index_serves_while_the_next_generation_is_built(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    with PassageIndex.open(index, device="cpu") as serving:
        before = serving.margins("ferry", ["p1", "p2"])
        assert build(index, settings, LONGER | {"new": "a new one"}, encoders=encoders).copied == 30
        assert serving.margins("ferry", ["p1", "p2"]) == before
        with PassageIndex.open(index, device="cpu") as newer:
            assert (len(serving), len(newer)) == (30, 31)
            assert newer.margins("ferry", ["p1", "p2"]) == before


def test_a_killed_reindex_copies_and_encodes_nothing_twice(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    changed = LONGER | {f"n{i}": f"a new passage, number {i}" for i in range(10)}
    run_until_killed(index, settings, changed, "indexer.working:WorkingFile.write", 2, signal.SIGKILL)
    assert open_current(index).manifest.generation == "000001"
    stored = stored_ids(index)
    report = build(index, settings, changed, encoders=encoders)
    assert report.resumed == len(stored)
    assert 0 < len(stored) < 10
    assert (report.copied, report.encoded) == (30, 10 - len(stored))
    assert passing(index)


def test_a_text_edited_and_edited_back_during_a_reindex_has_one_number(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    interrupt(index, settings, encoders, LONGER | {"p0": "edited"}, after=30)
    report = build(
        index, settings, LONGER, encoders=encoders
    )  # "p0" is stored with the edited text, under a new number
    assert (report.copied, report.encoded) == (30, 0)
    assert content(index) | {"next_number": 30} == content(undisturbed)
    assert passing(index)


def test_a_rollback_between_kill_and_resumption_does_not_mix_numbers(
    tmp_path: Path, settings: Settings, encoders: Encoders, mini_folder: Path, embedder_folder: Path
):
    index = tmp_path / "index"
    build(index, settings, TEXTS, encoders=encoders)
    build(index, settings_for(mini_folder, embedder_folder, chunk_size=8), TEXTS)
    interrupt(index, settings, encoders, LONGER | TEXTS, after=8)
    write_current(index, "000001")
    report = build(index, settings, LONGER | TEXTS, encoders=encoders)
    assert report.copied + report.resumed + report.encoded == 42
    assert passing(index)


def test_a_source_that_went_away_between_kill_and_resumption_is_no_obstacle(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, caplog: pytest.LogCaptureFixture
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    interrupt(index, settings, encoders, LONGER, after=8)
    shutil.rmtree(index / "generations" / "000001")
    with caplog.at_level(logging.WARNING):
        report = build(index, settings, LONGER, encoders=encoders)
    assert (report.resumed, report.copied, report.encoded) == (0, 0, 30)
    assert "nothing is copied from the live generation" in caplog.text
    assert passing(index)


def test_other_settings_encode_everything_anew_into_the_next_generation(
    tmp_path: Path, undisturbed: Path, mini_folder: Path, embedder_folder: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    report = build(index, settings_for(mini_folder, embedder_folder, chunk_size=8), LONGER)
    assert (report.generation, report.copied, report.encoded) == ("000002", 0, 30)
    assert passing(index)


def test_damaged_records_of_a_published_index_are_encoded_again(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    stores.damage_record(shard_of(index), "p3")
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.copied, report.encoded) == (29, 1)
    assert passing(index)


@pytest.mark.parametrize("damage", ["manifest", "schema", "cut"])
def test_a_published_index_beyond_reading_is_no_obstacle_to_the_next(
    tmp_path: Path, settings: Settings, encoders: Encoders, undisturbed: Path, damage: str
):
    index = Path(shutil.copytree(undisturbed, tmp_path / "index"))
    manifest, data = index / "generations/000001/manifest.json", shard_of(index) / "states.lmdb"
    if damage == "manifest":
        manifest.write_text("{")
    elif damage == "schema":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 0}))
    else:
        data.write_bytes(data.read_bytes()[:5000])  # mapping it would end the process
    report = build(index, settings, LONGER, encoders=encoders)
    assert (report.generation, report.copied, report.encoded) == ("000002", 0, 30)
    assert passing(index)


def test_a_model_folder_is_kept_as_an_absolute_path(
    tmp_path: Path, mini_folder: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(mini_folder.parent)
    build(tmp_path / "index", settings_for(Path(mini_folder.name), embedder_folder), {"a": "text"})
    monkeypatch.chdir(tmp_path)
    with PassageIndex.open(tmp_path / "index", device="cpu") as index:
        assert index.generation.manifest.model == str(mini_folder.resolve())


def test_a_folder_called_static_is_not_taken_for_the_bundled_embedder(
    tmp_path: Path, mini_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "static").mkdir()
    build(tmp_path / "index", settings_for(mini_folder, Path("static")), {"a": "text"})
    assert open_current(tmp_path / "index").manifest.embedder == "static"
    PassageIndex.open(tmp_path / "index", device="cpu").close()


def test_fingerprints_name_what_the_records_were_made_with(settings: Settings, encoders: Encoders):
    fingerprint = encoders.fingerprint
    assert (fingerprint.chunk_size, fingerprint.codec, fingerprint.dtype) == (4, "fp16", "float32")
    assert fingerprint.model == encoders.checkpoint.digest()
    assert fingerprint.embedder == encoders.embedder.digest
    assert replace(fingerprint) == load_encoders(settings).fingerprint
    assert np.isfinite(encoders.embedder.embed_passages(["text"])).all()
